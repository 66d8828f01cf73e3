package boot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloister/cloister/wire/initdata"
)

// initdataPCR is the register that carries the digest of the initdata.
const initdataPCR = 8

// InitdataDir is where the parts of the initdata are left for the guest's services.
const InitdataDir = "/run/confidential-containers/initdata"

// Names of the parts the guest uses.
const (
	partPolicy      = "policy.rego"
	partAttestation = "aa.toml"
	partDataHub     = "cdh.toml"
)

// pcrExtender measures a digest; guest/attest's TPM is one.
type pcrExtender interface {
	ExtendPCR(ctx context.Context, pcr int, digest []byte) error
}

// Initdata is what the pod's author gave to the guest.
type Initdata struct {
	// Text is the document as it was measured.
	Text []byte
	// Data holds its parts by name.
	Data map[string]string
}

// readInitdata finds the device that carries initdata and returns the document, uninterpreted. dev is normally /dev and
// sys /sys.
func readInitdata(sys, dev string) ([]byte, error) {
	entries, err := os.ReadDir(filepath.Join(sys, "class/block"))
	if err != nil {
		return nil, fmt.Errorf("listing block devices: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		if !strings.HasPrefix(name, "vd") && !strings.HasPrefix(name, "sd") {
			continue
		}
		text, err := decodeDevice(filepath.Join(dev, name))
		if errors.Is(err, initdata.ErrNoInitdata) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading initdata from %s: %w", name, err)
		}
		return text, nil
	}
	return nil, initdata.ErrNoInitdata
}

func decodeDevice(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return initdata.DecodeDevice(f)
}

// measureInitdata extends the register with the document's digest and only then looks into the document. The digest is
// always SHA-256, the register's own algorithm; a document that names another one could not be checked by anybody.
func measureInitdata(ctx context.Context, tpm pcrExtender, text []byte) (*Initdata, error) {
	sum := sha256.Sum256(text)
	if err := tpm.ExtendPCR(ctx, initdataPCR, sum[:]); err != nil {
		return nil, fmt.Errorf("measuring initdata: %w", err)
	}
	doc, err := initdata.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("parsing initdata: %w", err)
	}
	if doc.Algorithm != "sha256" {
		return nil, fmt.Errorf("parsing initdata: algorithm is %q, this platform measures with sha256", doc.Algorithm)
	}
	return &Initdata{Text: text, Data: doc.Data}, nil
}

// store leaves the document and the services' configuration in dir.
func (d *Initdata) store(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("storing initdata: %w", err)
	}
	files := map[string][]byte{"initdata.toml": d.Text}
	for _, part := range []string{partAttestation, partDataHub} {
		if text, ok := d.Data[part]; ok {
			files[part] = []byte(text)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return fmt.Errorf("storing initdata: %w", err)
		}
	}
	return nil
}
