// Package guestimage is the contract between who builds a guest image and who
// boots or predicts it: manifest.json in the image's folder names every artefact
// that the guest's measurements depend on, with its digest.
package guestimage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const (
	// Schema is the only schema version.
	Schema = 1
	// ManifestName is the manifest's file name.
	ManifestName = "manifest.json"

	maxManifestSize = 1 << 20
	maxCmdline      = 2048
)

// Manifest describes a guest image.
type Manifest struct {
	Schema int    `json:"schema"`
	Kernel Kernel `json:"kernel"`
	Initrd File   `json:"initrd"`
	// Plain is the initrd before compression, for boots that nobody measures: unpacking it is copying. Absent in images
	// of older builders.
	Plain    *File    `json:"initrd_plain,omitempty"`
	Firmware Firmware `json:"firmware"`
	// Cmdline is the kernel command line that is measured.
	Cmdline  string   `json:"cmdline"`
	Binaries Binaries `json:"binaries"`
	// Modules are the kernel modules in the initrd, in load order.
	Modules  []string  `json:"modules"`
	Packages []Package `json:"packages"`
}

// Kernel is the kernel image. Path is relative to the image's folder.
type Kernel struct {
	Path    string `json:"path"`
	SHA256  string `json:"sha256"`
	Size    int64  `json:"size"`
	Version string `json:"version"`
	Package string `json:"package"`
}

// File is an artefact. Path is relative to the image's folder.
type File struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// Firmware is what runs before the kernel. It belongs to the host's installation,
// so its paths may be absolute.
type Firmware struct {
	CodePath   string `json:"code_path"`
	VarsPath   string `json:"vars_path"`
	CodeSHA256 string `json:"code_sha256"`
	VarsSHA256 string `json:"vars_sha256"`
}

// Binaries are the programs inside the initrd.
type Binaries struct {
	GuestSHA256 string `json:"guest_sha256"`
	GuestSize   int64  `json:"guest_size"`
	RuncSHA256  string `json:"runc_sha256"`
	RuncVersion string `json:"runc_version"`
}

// Package is something the image was made from.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
}

// Parse reads and checks a manifest.
func Parse(text []byte) (*Manifest, error) {
	if len(text) > maxManifestSize {
		return nil, fmt.Errorf("guest image manifest: %d bytes exceed the limit of %d", len(text), maxManifestSize)
	}
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("guest image manifest: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("guest image manifest: text follows the object")
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return &m, nil
}

// Marshal writes the manifest as Parse reads it.
func (m *Manifest) Marshal() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("guest image manifest: %w", err)
	}
	return b.Bytes(), nil
}

// part is an artefact of an image.
type part struct{ name, path, sum string }

// parts are the artefacts in the image's folder.
func (m *Manifest) parts() []part {
	out := []part{{"kernel", m.Kernel.Path, m.Kernel.SHA256}, {"initrd", m.Initrd.Path, m.Initrd.SHA256}}
	if m.Plain != nil {
		out = append(out, part{"plain initrd", m.Plain.Path, m.Plain.SHA256})
	}
	return out
}

// Validate reports everything that is wrong with the manifest.
func (m *Manifest) Validate() error {
	var errs []error
	if m.Schema != Schema {
		errs = append(errs, fmt.Errorf("schema is %d, expected %d", m.Schema, Schema))
	}
	if len(m.Cmdline) > maxCmdline {
		errs = append(errs, fmt.Errorf("cmdline has %d bytes, more than %d", len(m.Cmdline), maxCmdline))
	}
	for _, f := range m.parts() {
		if !filepath.IsLocal(f.path) {
			errs = append(errs, fmt.Errorf("%s path %q is not inside the image's folder", f.name, f.path))
		}
		errs = append(errs, checkSum(f.name, f.sum))
	}
	for _, f := range []part{
		{"firmware code", m.Firmware.CodePath, m.Firmware.CodeSHA256},
		{"firmware vars", m.Firmware.VarsPath, m.Firmware.VarsSHA256},
	} {
		if f.path == "" {
			errs = append(errs, fmt.Errorf("%s path is missing", f.name))
		}
		errs = append(errs, checkSum(f.name, f.sum))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("guest image manifest: %w", err)
	}
	return nil
}

func checkSum(name, sum string) error {
	if raw, err := hex.DecodeString(sum); err != nil || len(raw) != sha256.Size {
		return fmt.Errorf("%s digest %q is not a hexadecimal SHA-256", name, sum)
	}
	return nil
}

// Load reads the manifest of the image in dir. It does not look at the artefacts;
// see Verify.
func Load(dir string) (*Manifest, error) {
	f, err := os.Open(filepath.Join(dir, ManifestName))
	if err != nil {
		return nil, fmt.Errorf("guest image manifest: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifestSize+1))
	if err != nil {
		return nil, fmt.Errorf("guest image manifest: %w", err)
	}
	return Parse(text)
}

// Path is where an artefact of the image in dir is; absolute paths stay.
func Path(dir, artefact string) string {
	if filepath.IsAbs(artefact) {
		return artefact
	}
	return filepath.Join(dir, artefact)
}

// Verify compares every artefact of the image in dir with its digest.
func (m *Manifest) Verify(dir string) error {
	var errs []error
	for _, f := range append(m.parts(),
		part{"firmware code", m.Firmware.CodePath, m.Firmware.CodeSHA256},
		part{"firmware vars", m.Firmware.VarsPath, m.Firmware.VarsSHA256},
	) {
		got, err := fileSum(Path(dir, f.path))
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("%s: %w", f.name, err))
		case got != f.sum:
			errs = append(errs, fmt.Errorf("%s: SHA-256 of %s is %s, expected %s", f.name, f.path, got, f.sum))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("verifying the guest image: %w", err)
	}
	return nil
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
