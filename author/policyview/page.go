package policyview

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// PageOptions say how much a page shows.
type PageOptions struct {
	// Values shows values of environment variables too. Without, their names are shown only.
	Values bool
	// Full shows each layer with its whole root hash.
	Full bool
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
		p.containers(pg, o)
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
	pg.line("A pod of %s. Rules: sha256:%s", some(len(p.titles()), "container"), p.Rules)
	for _, c := range p.data.Containers {
		name, space := c.OCI.Annotations["io.kubernetes.cri.sandbox-name"], c.OCI.Annotations["io.kubernetes.cri.sandbox-namespace"]
		if name == "" {
			continue
		}
		if space == "" {
			space = "any"
		}
		pg.row("name", safe(podName(name)))
		pg.row("namespace", safe(space))
		break
	}
	if usual := p.capabilityList("default_caps"); len(usual) > 0 {
		pg.row("default", wrapped(append([]string{"capabilities:"}, safeAll(usual)...))...)
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

// madeUp is what Kubernetes makes up in names, as the generators write it.
var madeUp = regexp.MustCompile(`\(-\[0-9\]\+\)\?|\[(?:bcdfghjklmnpqrstvwxz2456789|0-9)\]\+`)

// simpleName is a pattern of names of which only * is not meant as it stands, and dots have a backslash in front.
var simpleName = regexp.MustCompile(`^\^((?:[a-z0-9*-]|\\\.)+)\$$`)

// podName is an expression of names for people, if it is a simple one.
func podName(pattern string) string {
	m := simpleName.FindStringSubmatch(madeUp.ReplaceAllString(pattern, "*"))
	if m == nil || strings.Contains(pattern, "*") {
		return pattern
	}
	plain := strings.ReplaceAll(m[1], `\.`, ".")
	if strings.Contains(plain, "*") {
		plain += ", * is what Kubernetes adds"
	}
	return plain
}

func some(n int, what string) string {
	if n == 1 {
		return "one " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func safeAll(list []string) []string {
	out := make([]string, len(list))
	for i, x := range list {
		out[i] = safe(x)
	}
	return out
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
	var notes notes
	for i := range p.data.Containers {
		c := &p.data.Containers[i]
		add := func(format string, args ...any) { notes.add(safe(c.title()), fmt.Sprintf(format, args...)) }
		if _, kubernetes := p.data.Defaults["CreateContainerRequest"]; kubernetes && (c.RequiredEnv == nil || c.RequiredMounts == nil) && c.title() != pauseTitle {
			add("the host may leave out variables and mounts")
		}
		if disks := onDisks(c); disks > 1 {
			add("the host chooses which of its %d disks is mounted where", disks)
		}
		if c.Image != nil && c.Image.ByTag {
			add("the image is named by a tag, so its content is not bound")
		}
		if ref := c.OCI.Annotations["io.kubernetes.cri.image-name"]; c.Image == nil && ref != "" && !strings.Contains(ref, "@sha256:") && c.title() != pauseTitle {
			add("the image is named by a tag, so its content is not bound")
		}
		if slices.Contains(c.OCI.Process.Capabilities["Bounding"], "$(privileged_caps)") {
			add("it is privileged")
		}
		for _, m := range c.OCI.Mounts {
			if !strings.HasPrefix(m.Source, "$(sfprefix)") || expected(m.Destination) {
				continue
			}
			switch i := slices.IndexFunc(c.Files, func(f fileData) bool { return p.bindsFiles() && f.Destination == m.Destination }); {
			case i >= 0 && c.Files[i].Bound:
			case i >= 0 && c.Files[i].Free != nil:
				add("the host chooses the content of %s in %s", c.Files[i].open(), safe(m.Destination))
			default:
				add("the host chooses the content of %s", safe(m.Destination))
			}
		}
	}
	return append(out, notes.lines(p.titles())...)
}

// titles are the names of the containers beside the one that keeps the pod.
func (p *Policy) titles() (out []string) {
	for i := range p.data.Containers {
		if name := p.data.Containers[i].title(); name != pauseTitle {
			out = append(out, safe(name))
		}
	}
	return out
}

// notes are texts and the containers that each is about.
type notes struct {
	texts []string
	about map[string][]string
}

func (n *notes) add(container, text string) {
	if n.about == nil {
		n.about = map[string][]string{}
	}
	if n.about[text] == nil {
		n.texts = append(n.texts, text)
	}
	if !slices.Contains(n.about[text], container) {
		n.about[text] = append(n.about[text], container)
	}
}

// lines are those for a pod of these containers.
func (n *notes) lines(containers []string) (out []string) {
	const fewest = 6 // names that are worth to be left out
	for _, t := range n.texts {
		who := strings.Join(n.about[t], ", ")
		others := slices.DeleteFunc(slices.Clone(containers), func(c string) bool { return slices.Contains(n.about[t], c) })
		switch {
		case len(containers) > 1 && len(others) == 0:
			who = "all containers"
		case len(containers) >= fewest && len(others) <= 2:
			who = "all containers but " + strings.Join(others, " and ")
		}
		out = append(out, who+": "+t)
	}
	return out
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
