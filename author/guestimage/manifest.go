package guestimage

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

type Manifest struct {
	Schema   int        `json:"schema"`
	Kernel   KernelFile `json:"kernel"`
	Initrd   File       `json:"initrd"`
	Firmware Firmware   `json:"firmware"`
	Cmdline  string     `json:"cmdline"`
	Binaries Binaries   `json:"binaries"`
	Modules  []string   `json:"modules"`
	Packages []Package  `json:"packages"`
}

type KernelFile struct {
	Path    string `json:"path"`
	SHA256  string `json:"sha256"`
	Size    int64  `json:"size"`
	Version string `json:"version"`
	Package string `json:"package"`
}

type File struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

type Firmware struct {
	CodePath   string `json:"code_path"`
	VarsPath   string `json:"vars_path"`
	CodeSHA256 string `json:"code_sha256"`
	VarsSHA256 string `json:"vars_sha256"`
}

type Binaries struct {
	GuestSHA256 string `json:"guest_sha256"`
	GuestSize   int64  `json:"guest_size"`
	RuncSHA256  string `json:"runc_sha256"`
	RuncVersion string `json:"runc_version"`
}

type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
}

func newManifest(in inputs, tree *kernelTree, mods *moduleSet, guest, runc, initrd []byte) *Manifest {
	return &Manifest{
		Schema: 1,
		Kernel: KernelFile{
			Path: "vmlinuz", SHA256: hexSHA256(tree.Kernel), Size: int64(len(tree.Kernel)),
			Version: tree.Release, Package: in.lock.Kernel.Package,
		},
		Initrd: File{Path: "initrd.img", SHA256: hexSHA256(initrd), Size: int64(len(initrd))},
		Firmware: Firmware{
			CodePath: in.code.path, VarsPath: in.vars.path, CodeSHA256: in.code.sha256, VarsSHA256: in.vars.sha256,
		},
		Cmdline: in.cmdline,
		Binaries: Binaries{
			GuestSHA256: hexSHA256(guest), GuestSize: int64(len(guest)),
			RuncSHA256: hexSHA256(runc), RuncVersion: in.lock.Runc.Version,
		},
		Modules: mods.paths(),
		Packages: []Package{
			{Name: in.lock.Kernel.Package, Version: in.lock.Kernel.Version, SHA256: in.lock.Kernel.SHA256},
			{Name: runcModule, Version: in.lock.Runc.Version, SHA256: hexSHA256(runc)},
		},
	}
}

func (m *Manifest) encode() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("encoding the image manifest: %w", err)
	}
	return buf.Bytes(), nil
}

func loadManifest(dir string) (*Manifest, error) {
	data, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return nil, fmt.Errorf("reading the image manifest: %w", err)
	}
	m := new(Manifest)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("image manifest in %s: %w", dir, err)
	}
	return m, nil
}
