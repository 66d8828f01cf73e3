package policyview

import (
	"fmt"
	"slices"
	"strings"
)

// fact is one thing about a container. Of two containers facts with the same key are about the same thing. They are equal if the value is,
// too, which need not be shown.
type fact struct{ key, text, value string }

// facts are the rows of a container's section, by the names of rows.
type facts struct {
	names []string
	rows  map[string][]fact
}

func (f *facts) add(row, key, text string) { f.addValue(row, fact{key, text, ""}) }

func (f *facts) addValue(row string, x fact) {
	if f.rows == nil {
		f.rows = map[string][]fact{}
	}
	if _, known := f.rows[row]; !known {
		f.names = append(f.names, row)
	}
	f.rows[row] = append(f.rows[row], x)
}

// scalar is a row with one fact.
func (f *facts) scalar(row, text string) { f.add(row, row, text) }

// words are rows of which facts stand beside each other; the value goes before them.
var words = map[string]string{
	"variables": "",
	"optional":  "variables that the host may leave out:",
	"node":      "written by the host, which may leave them out:",
	"without":   "what the others have of these:",
}

func (f *facts) print(pg *pager) {
	for _, row := range f.names {
		var shown []string
		for _, x := range f.rows[row] {
			shown = append(shown, x.text)
		}
		if head, beside := words[row]; beside && len(shown) > 0 {
			if head != "" {
				shown = append([]string{head}, shown...)
			}
			shown = wrapped(shown)
		}
		pg.row(row, shown...)
	}
}

// own are rows in which containers differ by their nature.
var own = []string{"image", "runs"}

// shared are the facts that more than half of the containers have. Those are said once.
func shared(all []facts) facts {
	var out facts
	if len(all) < 2 {
		return out
	}
	type place struct {
		row string
		fact
	}
	count := map[place]int{}
	for _, f := range all {
		seen := map[place]bool{}
		for _, row := range f.names {
			for _, x := range f.rows[row] {
				if p := (place{row, x}); !seen[p] && !slices.Contains(own, row) {
					seen[p] = true
					count[p]++
				}
			}
		}
	}
	done := map[place]bool{}
	for _, f := range all {
		for _, row := range f.names {
			for _, x := range f.rows[row] {
				if p := (place{row, x}); 2*count[p] > len(all) && !done[p] {
					done[p] = true
					out.addValue(row, x)
				}
			}
		}
	}
	return out
}

// differ are the facts of a container beside the shared ones, and the keys of shared ones that it does not have.
func (f *facts) differ(common *facts) facts {
	has := func(in *facts, row string, right func(fact) bool) bool {
		return slices.ContainsFunc(in.rows[row], right)
	}
	var out facts
	for _, row := range f.names {
		for _, x := range f.rows[row] {
			if !has(common, row, func(y fact) bool { return x == y }) {
				out.addValue(row, x)
			}
		}
	}
	for _, row := range common.names {
		for _, x := range common.rows[row] {
			if !has(f, row, func(y fact) bool { return x.key == y.key }) {
				out.add("without", row+x.key, x.key)
			}
		}
	}
	return out
}

// factsOf are the rows about a container.
func (p *Policy) factsOf(c *containerData, o PageOptions) facts {
	var f facts
	for i, line := range imageOf(c, o.Full) {
		f.add("image", fmt.Sprint(i), line)
	}
	process := c.OCI.Process
	f.scalar("runs", command(process.Args))
	identity := fmt.Sprintf("%d:%d", process.User.UID, process.User.GID)
	if len(process.User.AdditionalGids) > 0 {
		identity += " groups " + numbers(process.User.AdditionalGids)
	}
	f.scalar("user", identity)
	if process.Cwd != "" {
		f.scalar("directory", safe(process.Cwd))
	}
	if process.NoNewPrivileges {
		f.scalar("privileges", "no new ones")
	}
	if c.SharedPID {
		f.scalar("sees", "the processes of the pod")
	}
	if caps := process.Capabilities["Bounding"]; process.Capabilities != nil {
		f.scalar("may", p.capabilities(caps))
	}
	f.scalar("root", map[bool]string{true: "read-only", false: "writable, kept by the guest"}[c.OCI.Root.Readonly])
	for _, v := range process.Env {
		name, _, _ := strings.Cut(v, "=")
		shown := safe(name)
		if o.Values {
			shown = safe(v)
		}
		f.addValue("variables", fact{safe(name), shown, v})
		if c.RequiredEnv != nil && !slices.Contains(*c.RequiredEnv, name) {
			f.add("optional", safe(name), safe(name))
		}
	}
	if names := atRunTime(process.Env); names != "" {
		f.scalar("run time", names+": the host chooses these values, within what the rules allow for such a field")
	}
	for _, name := range sorted(c.ClusterValues) {
		f.add("cluster", name, fmt.Sprintf("$(cluster:%s) is any text that fits %s", safe(name), safe(c.ClusterValues[name])))
	}
	for _, m := range c.OCI.Mounts {
		switch at := safe(m.Destination); {
		case slices.Contains(kernelMounts, m.Type):
		case c.ofNode(m) && slices.Contains(m.Options, "ro"):
			f.add("node", at, at+" (read-only)")
		case c.ofNode(m):
			f.add("node", at, at)
		default:
			f.add("mounts", at, at+" "+mount(p, c, m))
		}
	}
	for _, e := range c.Exec {
		f.add("exec", command(e), command(e))
	}
	if c.Signals != nil {
		f.scalar("signals", numbers(c.Signals))
	}
	for _, d := range c.Devices {
		at := d.Path
		if at == "" {
			at = "one that the policy does not name"
		}
		f.add("devices", safe(at), safe(at))
	}
	if c.Restarts != nil && !*c.Restarts {
		f.scalar("restarts", "never")
	}
	return f
}

// ofNode says that a mount is a file that the node writes for every pod.
func (c *containerData) ofNode(m mountData) bool {
	if !strings.HasPrefix(m.Source, "$(sfprefix)") || c.RequiredMounts != nil && slices.Contains(*c.RequiredMounts, m.Destination) {
		return false
	}
	return expected(m.Destination) || slices.ContainsFunc(c.Files, func(f fileData) bool { return f.Destination == m.Destination && f.Kind == "runtime" })
}

// capabilities says what a list is beside the default ones.
func (p *Policy) capabilities(list []string) string {
	usual, all := p.capabilityList("default_caps"), p.capabilityList("privileged_caps")
	var has []string
	for _, c := range list {
		switch c {
		case "$(default_caps)":
			has = append(has, usual...)
		case "$(privileged_caps)":
			has = append(has, all...)
		default:
			has = append(has, strings.TrimPrefix(c, "CAP_"))
		}
	}
	slices.Sort(has)
	has = slices.Compact(has)
	without := func(from, what []string) []string {
		return slices.DeleteFunc(slices.Clone(from), func(c string) bool { return slices.Contains(what, c) })
	}
	more, fewer := without(has, usual), without(usual, has)
	switch {
	case len(has) == 0 && len(list) == 0:
		return "nothing that takes a capability"
	case len(usual) == 0 || len(has) == 0:
		return safe(strings.Join(list, " "))
	case slices.Equal(has, all):
		return "all capabilities: it is privileged"
	case len(fewer) == len(usual) || len(fewer) > 3:
		return safe(strings.Join(has, " "))
	}
	text := defaultCapabilities
	if len(more) > 0 {
		text += " and " + strings.Join(more, " ")
	}
	if len(fewer) > 0 {
		text += " without " + strings.Join(fewer, " ")
	}
	return safe(text)
}

const defaultCapabilities = "the default capabilities"

func (p *Policy) capabilityList(name string) []string {
	var out []string
	for _, c := range texts(p.data.Common[name]) {
		out = append(out, strings.TrimPrefix(c, "CAP_"))
	}
	slices.Sort(out)
	return slices.Compact(out)
}
