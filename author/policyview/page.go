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
}

func container(pg *pager, p *Policy, c *containerData, o PageOptions) {
	pg.line("")
	kind := c.Kind
	if c.Init {
		kind = "init"
	}
	if kind != "" {
		kind = ", " + kind
	}
	pg.line("%s%s", safe(c.title()), safe(kind))
	pg.row("image", imageOf(c)...)
	process := c.OCI.Process
	pg.row("runs", command(process.Args))
	identity := fmt.Sprintf("%d:%d", process.User.UID, process.User.GID)
	if len(process.User.AdditionalGids) > 0 {
		identity += " groups " + numbers(process.User.AdditionalGids)
	}
	if process.NoNewPrivileges {
		identity += ", no new privileges"
	}
	if c.SharedPID {
		identity += ", sees the processes of the pod"
	}
	pg.row("user", identity+" in "+safe(process.Cwd))
	if caps := process.Capabilities["Bounding"]; len(caps) > 0 {
		pg.row("may", safe(strings.Join(caps, " ")))
	}
	pg.row("root", map[bool]string{true: "read-only", false: "writable, kept by the guest"}[c.OCI.Root.Readonly])
	pg.row("variables", variables(process.Env, o.Values))
	var mounts []string
	for _, m := range c.OCI.Mounts {
		if text := mount(p, c, m); text != "" {
			mounts = append(mounts, text)
		}
	}
	pg.row("mounts", mounts...)
	var execs []string
	for _, e := range c.Exec {
		execs = append(execs, command(e))
	}
	pg.row("exec", execs...)
	if c.Signals != nil {
		pg.row("signals", numbers(c.Signals))
	}
	if len(c.Devices) > 0 {
		pg.row("devices", strconv.Itoa(len(c.Devices)))
	}
	if c.Restarts != nil && !*c.Restarts {
		pg.row("restarts", "never")
	}
}

// imageOf says where the root file system comes from and what binds it.
func imageOf(c *containerData) []string {
	var out []string
	for _, s := range c.Storages {
		switch {
		case s.Driver == "erofs-verity-layer":
			for _, opt := range s.Options {
				if root, ok := strings.CutPrefix(opt, "X-kata.dmverity.roothash="); ok {
					out = append(out, "layer of the host, bound by verity root "+safe(root))
				}
			}
		case s.Driver == "image_guest_pull":
			out = append(out, safe(s.Source)+" pulled by the guest")
		}
	}
	if i := c.Image; i != nil {
		how := "bound by digest " + safe(i.Digest)
		if i.ByTag {
			how = "by tag: whoever answers for the registry chooses the content"
		}
		return append([]string{safe(i.Reference) + ", " + how}, out...)
	}
	if name := c.OCI.Annotations["io.kubernetes.cri.image-name"]; name != "" {
		return append([]string{safe(name)}, out...)
	}
	if len(out) == 0 && c.title() == "(pause)" {
		return []string{"the guest's own pause program"}
	}
	return out
}

// kernelMounts are there in every container and tell nothing.
var kernelMounts = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup"}

func mount(p *Policy, c *containerData, m mountData) string {
	if slices.Contains(kernelMounts, m.Type) {
		return ""
	}
	how := "read-write"
	if slices.Contains(m.Options, "ro") {
		how = "read-only"
	}
	return fmt.Sprintf("%s %s, %s", safe(m.Destination), how, origin(p, c, m))
}

func origin(p *Policy, c *containerData, m mountData) string {
	for _, f := range c.Files {
		if f.Destination != m.Destination {
			continue
		}
		what := fmt.Sprintf("%s %s", safe(f.Kind), safe(f.Volume))
		if f.Bound && p.bindsFiles() {
			return fmt.Sprintf("%s, %d files bound by digest", what, len(f.Entries))
		}
		return what + ", content chosen by the host"
	}
	switch {
	case m.Source == "":
		if slices.ContainsFunc(c.Storages, func(s storageData) bool { return slices.Contains(s.DriverOptions, "encryption_key=ephemeral") }) {
			return "disk of the host, encrypted with a key made in the guest"
		}
		return "disk of the host, not encrypted"
	case strings.Contains(m.Source, "/sandbox/ephemeral/") || strings.Contains(m.Source, "/sandbox/shm"):
		return "memory of the guest"
	case strings.HasPrefix(m.Source, "$(sfprefix)"):
		return "content chosen by the host"
	}
	return safe(m.Source)
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
			if strings.HasPrefix(m.Source, "$(sfprefix)") && !slices.ContainsFunc(c.Files, func(f fileData) bool { return f.Bound && p.bindsFiles() && f.Destination == m.Destination }) && !expected(m.Destination) {
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
