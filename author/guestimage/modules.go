package guestimage

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// wantedModule is a module the guest needs. What is built into the kernel
// counts as there.
type wantedModule struct {
	Name string
	// Boot modules are loaded by init before anything else; the others are
	// there for when a pod needs them.
	Boot bool
	// Device modules are loaded for the devices that they say they drive.
	Device bool
	// Optional modules do not exist in every kernel series.
	Optional bool
}

// wantedModules is the whole list. The order among boot modules is the load
// order as far as dependencies leave it open.
func wantedModules() []wantedModule {
	return []wantedModule{
		{Name: "virtio_pci", Boot: true},
		{Name: "virtio_console", Boot: true},
		{Name: "virtio_blk", Device: true},
		{Name: "virtio_rng", Device: true},
		{Name: "virtio_net", Device: true},
		{Name: "tpm_tis", Boot: true},
		{Name: "tpm_crb", Boot: true},
		{Name: "overlay"},
		{Name: "af_packet", Boot: true},
		{Name: "vmw_vsock_virtio_transport", Device: true},
		{Name: "virtio_mmio", Device: true},
		{Name: "virtio_scsi", Device: true},
		{Name: "sd_mod", Device: true},
		{Name: "virtio_balloon", Device: true},
		{Name: "virtio_mem", Device: true},

		{Name: "virtiofs"},
		{Name: "squashfs"},
		{Name: "ext4"},
		{Name: "erofs"},
		{Name: "loop"},
		{Name: "dm_mod"},
		{Name: "dm_verity"},
		{Name: "dm_crypt"},
		{Name: "dm_integrity"},
		{Name: "aesni_intel"},
		{Name: "sha256_ssse3", Optional: true},
		{Name: "crc32c_intel", Optional: true},
		{Name: "crc32c_generic", Optional: true},
		{Name: "xts"},
		{Name: "essiv"},
		{Name: "authenc"},
		{Name: "gcm"},
		{Name: "ccm"},
		{Name: "configfs"},
		{Name: "tsm", Optional: true},
		{Name: "sev_guest", Optional: true},
		{Name: "tdx_guest", Optional: true},
	}
}

// moduleSet is what goes into the image.
type moduleSet struct {
	// Files are unpacked modules by path below /lib/modules/<release>/.
	Files map[string][]byte
	// Boot is the load order of the boot modules, as such paths.
	Boot []string
	// Deps lists, for each file, what must be loaded before it, in order.
	Deps map[string][]string
	// Aliases are the names of devices, as patterns, with the module that drives them.
	Aliases [][2]string
	// Builtin names what the kernel has built in, of what was wanted.
	Builtin []string
}

// moduleIndex finds modules by name, unpacks them when asked and knows their
// dependencies, which it reads from the modules: a kernel package carries no
// modules.dep, that file is made when the package is installed.
type moduleIndex struct {
	tree    *kernelTree
	paths   map[string]string // normalized name -> path in tree
	builtin map[string]bool
	loaded  map[string]*module // by normalized name
}

type module struct {
	path    string // without the compression suffix
	data    []byte
	depends []string // normalized names
	soft    []string
	aliases []string
}

// moduleName is the name under which the kernel knows a module file.
func moduleName(file string) string {
	base := path.Base(file)
	if i := strings.Index(base, ".ko"); i >= 0 {
		base = base[:i]
	}
	return strings.ReplaceAll(base, "-", "_")
}

func newModuleIndex(t *kernelTree) (*moduleIndex, error) {
	ix := &moduleIndex{tree: t, paths: map[string]string{}, builtin: map[string]bool{}, loaded: map[string]*module{}}
	for _, line := range strings.Split(string(t.Builtin), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			ix.builtin[moduleName(line)] = true
		}
	}
	for p := range t.Modules {
		name := moduleName(p)
		if other, dup := ix.paths[name]; dup {
			return nil, fmt.Errorf("module %s exists twice: %s and %s", name, other, p)
		}
		ix.paths[name] = p
	}
	return ix, nil
}

// selectModules resolves the wanted modules of a kernel with everything they
// depend on.
func selectModules(t *kernelTree, wanted []wantedModule) (*moduleSet, error) {
	ix, err := newModuleIndex(t)
	if err != nil {
		return nil, err
	}
	set := &moduleSet{Files: map[string][]byte{}, Deps: map[string][]string{}}
	seenBoot := map[string]bool{}
	for _, w := range wanted {
		name := strings.ReplaceAll(w.Name, "-", "_")
		if ix.builtin[name] {
			set.Builtin = append(set.Builtin, name)
			continue
		}
		if _, ok := ix.paths[name]; !ok {
			if w.Optional {
				continue
			}
			return nil, fmt.Errorf("kernel %s has no module %s, neither built in nor as a file", t.Release, name)
		}
		order, err := ix.resolve(name)
		if err != nil {
			return nil, err
		}
		if w.Device {
			for _, a := range ix.loaded[name].aliases {
				set.Aliases = append(set.Aliases, [2]string{a, name})
			}
		}
		for i, n := range order {
			m := ix.loaded[n]
			if _, done := set.Files[m.path]; !done {
				set.Files[m.path] = m.data
				// The order up to a module is a valid one for it, but holds
				// more than its own dependencies; ask again for those.
				own, err := ix.resolve(n)
				if err != nil {
					return nil, err
				}
				deps := []string{}
				for _, d := range own[:len(own)-1] {
					deps = append(deps, ix.loaded[d].path)
				}
				set.Deps[m.path] = deps
			}
			if w.Boot && !seenBoot[order[i]] {
				seenBoot[n] = true
				set.Boot = append(set.Boot, m.path)
			}
		}
	}
	sort.Strings(set.Builtin)
	return set, nil
}

// resolve lists the modules to load for name, dependencies first, name last.
func (ix *moduleIndex) resolve(name string) ([]string, error) {
	var order []string
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(n, from string) error
	visit = func(n, from string) error {
		switch {
		case ix.builtin[n] || state[n] == done:
			return nil
		case state[n] == visiting:
			return fmt.Errorf("modules %s and %s depend on each other", from, n)
		}
		state[n] = visiting
		m, err := ix.load(n)
		if err != nil {
			if from != "" {
				return fmt.Errorf("%w (needed by %s)", err, from)
			}
			return err
		}
		for _, d := range m.depends {
			if err := visit(d, n); err != nil {
				return err
			}
		}
		for _, d := range m.soft {
			// Soft dependencies are often aliases ("crypto-crc32c") or
			// drivers of other hardware: only real, acyclic ones count.
			if _, ok := ix.paths[d]; ok && state[d] != visiting {
				if err := visit(d, n); err != nil {
					return err
				}
			}
		}
		state[n] = done
		order = append(order, n)
		return nil
	}
	if err := visit(name, ""); err != nil {
		return nil, err
	}
	return order, nil
}

func (ix *moduleIndex) load(name string) (*module, error) {
	if m := ix.loaded[name]; m != nil {
		return m, nil
	}
	p, ok := ix.paths[name]
	if !ok {
		return nil, fmt.Errorf("kernel %s has no module %s", ix.tree.Release, name)
	}
	data, plain, err := unpackModule(p, ix.tree.Modules[p])
	if err != nil {
		return nil, fmt.Errorf("unpacking module %s: %w", p, err)
	}
	m := &module{path: plain, data: data}
	if m.depends, m.soft, m.aliases, err = moduleDeps(data); err != nil {
		return nil, fmt.Errorf("reading module %s: %w", p, err)
	}
	ix.loaded[name] = m
	return m, nil
}

// maxModuleSize bounds one unpacked module.
const maxModuleSize = 64 << 20

// unpackModule undoes the compression a module file's name announces.
func unpackModule(name string, data []byte) (plain []byte, plainName string, err error) {
	var r io.Reader
	switch {
	case strings.HasSuffix(name, ".ko"):
		return data, name, nil
	case strings.HasSuffix(name, ".ko.xz"):
		xr, err := xz.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, "", err
		}
		r, plainName = xr, strings.TrimSuffix(name, ".xz")
	case strings.HasSuffix(name, ".ko.zst"):
		zr, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModuleSize))
		if err != nil {
			return nil, "", err
		}
		defer zr.Close()
		r, plainName = zr, strings.TrimSuffix(name, ".zst")
	default:
		return nil, "", fmt.Errorf("unknown compression")
	}
	plain, err = io.ReadAll(io.LimitReader(r, maxModuleSize+1))
	if err != nil {
		return nil, "", err
	}
	if len(plain) > maxModuleSize {
		return nil, "", fmt.Errorf("more than %d bytes", maxModuleSize)
	}
	return plain, plainName, nil
}

// moduleDeps reads the .modinfo section: NUL-terminated key=value entries.
func moduleDeps(data []byte) (depends, soft, aliases []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, nil, nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, nil, nil, fmt.Errorf("no .modinfo section")
	}
	if s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED != 0 || s.Size > uint64(len(data)) {
		return nil, nil, nil, fmt.Errorf(".modinfo section of %d bytes in a file of %d", s.Size, len(data))
	}
	info, err := s.Data()
	if err != nil {
		return nil, nil, nil, err
	}
	for _, e := range bytes.Split(info, []byte{0}) {
		k, v, _ := strings.Cut(string(e), "=")
		switch k {
		case "depends":
			for _, d := range strings.Split(v, ",") {
				if d = strings.TrimSpace(d); d != "" {
					depends = append(depends, strings.ReplaceAll(d, "-", "_"))
				}
			}
		case "alias":
			if !strings.ContainsAny(v, " \n") {
				aliases = append(aliases, v)
			}
		case "softdep":
			pre, ok := strings.CutPrefix(v, "pre:")
			if !ok {
				continue
			}
			pre, _, _ = strings.Cut(pre, "post:")
			for _, d := range strings.Fields(pre) {
				soft = append(soft, strings.ReplaceAll(d, "-", "_"))
			}
		}
	}
	return depends, soft, aliases, nil
}

// depFile renders modules.dep for the selected modules, for loaders that want
// one: the nearest dependency first, as depmod does.
func (s *moduleSet) depFile() []byte {
	var b bytes.Buffer
	for _, p := range s.paths() {
		b.WriteString(p + ":")
		for i := len(s.Deps[p]) - 1; i >= 0; i-- {
			b.WriteString(" " + s.Deps[p][i])
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// aliasFile renders modules.alias.
func (s *moduleSet) aliasFile() []byte {
	var b bytes.Buffer
	for _, a := range s.Aliases {
		fmt.Fprintf(&b, "alias %s %s\n", a[0], a[1])
	}
	return b.Bytes()
}

func (s *moduleSet) paths() []string {
	out := make([]string, 0, len(s.Files))
	for p := range s.Files {
		out = append(out, p)
	}
	sort.Strings(out)
	return out
}
