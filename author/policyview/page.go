package policyview

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// PageOptions say how much a page shows.
type PageOptions struct {
	// Values shows values of environment variables too. Without, their names are shown only.
	Values bool
}

// Page writes what the policy allows, for a person. Texts of the policy are printed so that they cannot steer a terminal.
func (p *Policy) Page(w io.Writer, o PageOptions) error {
	pg := &pager{w: w}
	if p.aci != nil {
		p.aciPage(pg, o)
		return pg.err
	}
	if p.Data == nil {
		pg.line("This policy has no policy_data: only its rules say what it allows.")
	} else {
		p.pod(pg)
		for i := range p.data.Containers {
			container(pg, p, &p.data.Containers[i], o)
		}
	}
	p.host(pg)
	if notes := p.Warnings(); len(notes) > 0 {
		pg.line("")
		pg.line("Mind")
		for _, n := range notes {
			pg.line("  - %s", n)
		}
	}
	return pg.err
}

type pager struct {
	w   io.Writer
	err error
}

func (p *pager) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, strings.TrimRight(fmt.Sprintf(format, args...), " "))
	}
}

func (p *pager) row(name string, values ...string) {
	for i, v := range values {
		if i > 0 {
			name = ""
		}
		p.line("  %-10s %s", name, v)
	}
}

func (p *Policy) pod(pg *pager) {
	pg.line("A pod of %d containers. Rules: sha256:%s", len(p.data.Containers), p.Rules)
	for _, c := range p.data.Containers {
		name, space := c.OCI.Annotations["io.kubernetes.cri.sandbox-name"], c.OCI.Annotations["io.kubernetes.cri.sandbox-namespace"]
		if name == "" {
			continue
		}
		if space == "" {
			space = "any"
		}
		pg.row("name", safe(name))
		pg.row("namespace", safe(space))
		break
	}
	for _, f := range p.data.Fragments {
		needed := ""
		if f.Required {
			needed = ", needed before any container"
		}
		pg.row("fragment", fmt.Sprintf("more containers, from %s signed by %s, version %s or later%s", safe(f.Feed), safe(f.Issuer), safe(fmt.Sprint(f.MinimumSVN)), needed))
	}
	if on, _ := p.data.Cloister["enforce_order"].(bool); on {
		pg.row("order", "init containers must have ended well, sidecars must run, before what comes after them")
	}
	if usual := texts(p.data.Common["default_caps"]); len(usual) > 0 {
		pg.row("usual", "capabilities of containers are "+safe(strings.Join(usual, " ")))
	}
}

func (p *Policy) host(pg *pager) {
	pg.line("")
	pg.line("The host")
	d := p.data.Defaults
	say := func(name string, yes, no string) {
		if on, _ := d[name].(bool); on {
			pg.row("can", yes)
		} else if d != nil {
			pg.row("cannot", no)
		}
	}
	say("ReadStreamRequest", "read what containers print", "read what containers print")
	say("WriteStreamRequest", "write to the standard input of processes", "write to the standard input of processes")
	say("UpdateEphemeralMountsRequest", "change sizes of memory volumes", "change sizes of memory volumes")
	say("GetDiagnosticDataRequest", "ask for diagnostic data", "ask for diagnostic data")
	if create, ok := d["CreateContainerRequest"].(map[string]any); ok {
		if n := len(list(create["allow_env_regex"])); n > 0 {
			pg.row("can", fmt.Sprintf("add variables to any container that fit one of %d patterns, as those of services do", n))
		}
		pg.row("can", "choose how much memory and processor time containers get")
	}
	if exec, ok := d["ExecProcessRequest"].(map[string]any); ok {
		for _, c := range list(exec["allowed_commands"]) {
			pg.row("can", "run in any container: "+command(texts(c)))
		}
		for _, r := range list(exec["regex"]) {
			pg.row("can", fmt.Sprintf("run in any container what matches %s", safe(fmt.Sprint(r))))
		}
	}
	if forward, ok := d["PortForwardRequest"].(map[string]any); ok {
		for _, port := range list(forward["allowed_ports"]) {
			pg.row("can", "reach port "+safe(fmt.Sprint(port))+" of the pod from inside")
		}
	}
	if len(p.Always) > 0 {
		pg.row("always", wrapped(p.Always)...)
	}
	if len(p.Never) > 0 {
		pg.row("never", wrapped(p.Never)...)
	}
}

// wrapped are words on lines of a page's width.
func wrapped(words []string) []string {
	var lines []string
	for _, w := range words {
		if n := len(lines); n > 0 && len(lines[n-1])+len(w) < 86 {
			lines[n-1] += " " + w
		} else {
			lines = append(lines, w)
		}
	}
	return lines
}

// Warnings are what an owner should know before trusting the policy.
func (p *Policy) Warnings() []string {
	if p.aci != nil {
		return p.aci.warnings(p.Data)
	}
	var out []string
	if slices.Contains(p.Always, "AllowRequestsFailingPolicy") {
		out = append(out, "insecure: requests that the policy refuses are let through (AllowRequestsFailingPolicy)")
	}
	if slices.Contains(p.Always, "SetPolicyRequest") {
		out = append(out, "the host may replace this policy (SetPolicyRequest)")
	}
	if slices.Contains(p.Always, "CreateContainerRequest") {
		out = append(out, "any container may run (CreateContainerRequest)")
	}
	for i := range p.data.Containers {
		c := &p.data.Containers[i]
		name := safe(c.title())
		if _, kubernetes := p.data.Defaults["CreateContainerRequest"]; kubernetes && (c.RequiredEnv == nil || c.RequiredMounts == nil) && c.title() != "(pause)" {
			out = append(out, name+": the host may leave out variables and mounts")
		}
		if disks := onDisks(c); disks > 1 {
			out = append(out, fmt.Sprintf("%s: the host chooses which of its %d disks is mounted where", name, disks))
		}
		if c.Image != nil && c.Image.ByTag {
			out = append(out, name+": the image is named by a tag, so its content is not bound")
		}
		if ref := c.OCI.Annotations["io.kubernetes.cri.image-name"]; c.Image == nil && ref != "" && !strings.Contains(ref, "@sha256:") && c.title() != "(pause)" {
			out = append(out, name+": the image is named by a tag, so its content is not bound")
		}
		if slices.Contains(c.OCI.Process.Capabilities["Bounding"], "$(privileged_caps)") {
			out = append(out, name+": it is privileged")
		}
		for _, m := range c.OCI.Mounts {
			if !strings.HasPrefix(m.Source, "$(sfprefix)") || expected(m.Destination) {
				continue
			}
			switch i := slices.IndexFunc(c.Files, func(f fileData) bool { return p.bindsFiles() && f.Destination == m.Destination }); {
			case i >= 0 && c.Files[i].Bound:
			case i >= 0 && c.Files[i].Free != nil:
				out = append(out, fmt.Sprintf("%s: the host chooses the content of %s in %s", name, c.Files[i].open(), safe(m.Destination)))
			default:
				out = append(out, fmt.Sprintf("%s: the host chooses the content of %s", name, safe(m.Destination)))
			}
		}
	}
	return slices.Compact(out)
}

// bindsFiles says whether the rules compare the content of ConfigMaps and Secrets.
func (p *Policy) bindsFiles() bool {
	on, said := p.data.Cloister["bind_files"].(bool)
	return on || !said
}

// expected are files of every pod that the node writes.
func expected(destination string) bool {
	return slices.Contains([]string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/var/run/secrets/kubernetes.io/serviceaccount",
		"/var/run/secrets/azure/tokens"}, destination)
}

func variables(env []string, values bool) string {
	var out []string
	for _, v := range env {
		if !values {
			v, _, _ = strings.Cut(v, "=")
		}
		out = append(out, safe(v))
	}
	if len(out) == 0 {
		return "none of its own"
	}
	return strings.Join(slices.Compact(out), " ")
}

func command(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if a == "" || strings.ContainsAny(a, " \t\n\"'\\") {
			quoted[i] = strconv.Quote(a)
		}
	}
	return safe(strings.Join(quoted, " "))
}

func numbers[T int | int64](list []T) string {
	out := make([]string, len(list))
	for i, n := range list {
		out[i] = strconv.FormatInt(int64(n), 10)
	}
	return strings.Join(out, " ")
}

func list(v any) []any { l, _ := v.([]any); return l }

func texts(v any) []string {
	var out []string
	for _, x := range list(v) {
		out = append(out, fmt.Sprint(x))
	}
	return out
}

// safe is a text on one line without what could steer a terminal.
func safe(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// sorted are the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
