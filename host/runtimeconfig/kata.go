package runtimeconfig

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Tables at the top of a configuration.toml of Kata Containers; ours has none of these names.
func isKata(l leaf) bool {
	return slices.Contains([]string{"hypervisor", "agent", "runtime", "factory"}, l.path[0])
}

// Ignored is a key of a Kata file that has no effect here.
type Ignored struct {
	Key    string `json:"key"`
	Source Source `json:"source"`
	Reason string `json:"reason"`
}

// kata is what the files of Kata say, all together: which of several hypervisor tables counts can be said in a later file.
type kata struct {
	leaves []leaf // with paths of two parts: table and key
	// kind is vmm.kind, and kindFrom where it is said.
	kind     string
	kindFrom Source
	ignored  []Ignored
	// suspect are the insecure keys that are on.
	suspect []leaf
	// confidential is where the file asks for protection; tee is which, or "" when it does not say.
	confidential *leaf
	tee          string
}

// hypervisors names those of Kata's that we have.
func hypervisors() map[string]string {
	return map[string]string{"qemu": "qemu", "clh": "cloud-hypervisor", "cloud-hypervisor": "cloud-hypervisor", "remote": "remote"}
}

// readKata chooses the hypervisor's table and strips names of parts, so that keys can be looked up in settings.
func readKata(leaves []leaf) (*kata, error) {
	k := &kata{}
	tables := map[string]Source{}
	var order []string
	var wanted *leaf
	for _, l := range leaves {
		switch {
		case l.path[0] == "hypervisor" && len(l.path) > 2:
			if _, there := tables[l.path[1]]; !there {
				order = append(order, l.path[1])
				tables[l.path[1]] = l.src
			}
		case l.name() == "runtime.hypervisor_name":
			wanted = &l
		}
	}
	chosen := ""
	switch {
	case wanted != nil:
		name, ok := wanted.value.(string)
		if !ok {
			return nil, fmt.Errorf("%s: runtime.hypervisor_name is %s, want a text", wanted.src, show(wanted.value))
		}
		chosen, k.kindFrom = name, wanted.src
	case len(order) == 1:
		chosen, k.kindFrom = order[0], tables[order[0]]
	case len(order) > 1:
		return nil, fmt.Errorf("%s: there are tables of several hypervisors (%s) and no runtime.hypervisor_name: want one",
			tables[order[1]], strings.Join(order, ", "))
	}
	if chosen != "" {
		if k.kind = hypervisors()[chosen]; k.kind == "" {
			return nil, fmt.Errorf("%s: hypervisor %s is not supported, want qemu, clh or remote", k.kindFrom, show(chosen))
		}
		// One of two names may be in the table, the other in the key. Another table than the chosen would silently lose what it asks for.
		same := func(name string) bool { return hypervisors()[name] == k.kind }
		if i := slices.IndexFunc(order, same); i >= 0 && !slices.Contains(order, chosen) {
			chosen = order[i]
		} else if i < 0 && len(order) > 0 {
			return nil, fmt.Errorf("%s: the hypervisor is %s, and the only tables are of %s: want a table for it", k.kindFrom,
				show(chosen),
				strings.Join(order, ", "))
		}
	}
	last := map[string]leaf{}
	for _, l := range leaves {
		if part := l.path[0]; part != "hypervisor" || len(l.path) < 3 || l.path[1] == chosen {
			last[l.name()] = l // a later file may switch off what an earlier one has on
		}
		switch part := l.path[0]; {
		case part == "hypervisor" && len(l.path) > 2 && l.path[1] != chosen:
			k.ignore(l, "the hypervisor is "+chosen)
		case (part == "hypervisor" || part == "agent") && len(l.path) == 3:
			l.src.Name, l.path = l.name(), []string{part, l.path[2]}
			k.leaves = append(k.leaves, l)
		case part == "hypervisor" && len(l.path) == 4 && l.path[2] == "factory": // the Rust runtime has the table there
			l.src.Name, l.path = l.name(), l.path[2:]
			k.leaves = append(k.leaves, l)
		case (part == "runtime" || part == "factory") && len(l.path) == 2:
			l.src.Name = l.name()
			k.leaves = append(k.leaves, l)
		default:
			k.ignore(l, reasonOf(l))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(last)) {
		if l := last[name]; insecure()[l.path[len(l.path)-1]] != "" && on(l.value) {
			k.suspect = append(k.suspect, l)
		}
	}
	k.protection()
	return k, nil
}

func (k *kata) ignore(l leaf, reason string) {
	k.ignored = append(k.ignored, Ignored{Key: l.name(), Source: l.src, Reason: reason})
}

// protection finds out which TEE is asked for. Kata asks the host when its file does not say; we do not guess.
func (k *kata) protection() {
	last := map[string]leaf{}
	for _, l := range k.leaves {
		last[l.path[1]] = l
	}
	if l, ok := last["confidential_guest"]; ok && l.value == true {
		k.confidential = &l
	}
	if l, ok := last["sev_snp_guest"]; ok && l.value == true {
		k.confidential, k.tee = &l, "snp"
		return
	}
	switch machine := last["machine_type"]; {
	case has(last, "tdx_quote_generation_service_socket_port"):
		k.tee = "tdx"
	case machine.value == "s390-ccw-virtio":
		k.tee = "se"
	case has(last, "measurement_algo"):
		k.tee = "cca"
	}
}

func has(m map[string]leaf, key string) bool {
	_, ok := m[key]
	return ok
}

// apply puts what the files say into the configuration.
func (k *kata) apply(b *builder) {
	for _, l := range k.leaves {
		name := l.name()
		if elsewhere(l) {
			continue
		}
		s, f := b.foreign(name)
		if s == nil {
			k.ignore(leaf{path: []string{l.src.Name}, src: l.src}, reasonOf(l))
			continue
		}
		value := l.value
		if f.as != nil {
			v, err := f.as.value(value)
			if err != nil {
				b.fault(fmt.Errorf("%s: %s %w", l.src, l.src.Name, err))
				continue
			}
			if value = v; v == nil {
				k.ignore(leaf{path: []string{l.src.Name}, src: l.src}, "zero is the default")
				continue
			}
		}
		b.set(s, value, l.src)
	}
	if k.kind != "" {
		b.set(b.byKey("vmm.kind"), k.kind, k.kindFrom)
		if k.kind == "remote" && b.sources["network.model"].Kind == "" {
			b.set(b.byKey("network.model"), "none", k.kindFrom)
		}
	}
	if k.confidential != nil && k.tee != "" {
		b.set(b.byKey("sandbox.tee"), k.tee, k.confidential.src)
	}
}

// confirm refuses a configuration that is not protected although Kata's file asks for it.
func (k *kata) confirm(b *builder) {
	if k.confidential == nil || b.c.Confidential() {
		return
	}
	src := k.confidential.src
	if b.own["sandbox.tee"] {
		b.fault(fmt.Errorf("%s: %s is true, but sandbox.tee is \"none\" at %s: want both to agree", src, src.Name, b.at("sandbox.tee")))
		return
	}
	b.fault(fmt.Errorf("%s: %s is true, but nothing says which TEE (hint: add a drop-in with [sandbox] tee = \"tdx\", \"snp\", \"se\", "+
		"\"cca\" or \"auto\")", src, src.Name))
}

// insecure are keys of Kata that have no setting here and show a confidential guest to the host when they are on. They are refused there
// and not just ignored, because who wrote them expects them to work.
func insecure() map[string]string {
	return map[string]string{
		"guest_memory_dump_path":  "writes the guest's memory to a file of the host",
		"file_mem_backend":        "keeps the guest's memory in a file of the host",
		"enable_guest_swap":       "writes the guest's memory to a disk of the host",
		"sandbox_bind_mounts":     "shares directories of the host with the guest",
		"shared_mounts":           "shares directories between containers through the host",
		"debug_console_enabled":   "opens a shell in the guest to the host",
		"disable_guest_empty_dir": "keeps the guest's data in directories of the host",
	}
}

// refuse reports the insecure keys of a configuration that is confidential.
func (k *kata) refuse(c *Config) error {
	if !c.Confidential() {
		return nil
	}
	var faults []error
	for _, l := range k.suspect {
		faults = append(faults, fmt.Errorf("%s: %s is %s, which %s: refused, because sandbox.tee is %q",
			l.src, l.name(), show(l.value), insecure()[l.path[len(l.path)-1]], c.Sandbox.TEE))
	}
	return errors.Join(faults...)
}

// on says whether a value switches something on.
func on(v any) bool {
	switch v := v.(type) {
	case bool:
		return v
	case string:
		return v != ""
	case []any:
		return len(v) > 0
	}
	return true
}

// elsewhere says that a key has been dealt with when the files were read as a whole.
func elsewhere(l leaf) bool {
	switch l.name() {
	case "hypervisor.confidential_guest", "hypervisor.sev_snp_guest", "runtime.hypervisor_name":
		return true
	}
	return false
}

// reasonOf says why a key has no effect.
func reasonOf(l leaf) string {
	if why := insecure()[l.path[len(l.path)-1]]; why != "" {
		return "not supported; refused for confidential sandboxes, because it " + why
	}
	for _, part := range l.path[1:] { // a table of which all is ignored comes before what is in it
		for _, r := range reasons() {
			if slices.Contains(strings.Fields(r.keys), part) {
				return r.why
			}
		}
	}
	return "not a key that Cloister knows"
}
