package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cloister/cloister/host/cri"
	"github.com/cloister/cloister/internal/paths"
)

// Kind is what a bundle stands for. A bundle without config.json, which containerd makes for the sandbox service, is a single container.
type Kind = cri.Kind

// Kinds of bundles: a container that gets a shim and a machine of its own, a pod's own container, and a container of a pod that exists,
// which the sandbox's shim serves.
const (
	KindSingle    = cri.KindSingle
	KindSandbox   = cri.KindSandbox
	KindContainer = cri.KindContainer
)

// maxSpec bounds config.json: etcd limits what a pod can hold to 1.5 MB, CDI and mounts add to it.
const maxSpec = 16 << 20

// Classify says what the annotations of a container with this id make it, and to which sandbox it belongs.
func Classify(id string, annotations map[string]string) (Kind, string, error) {
	a := cri.Annotations(annotations)
	kind, err := a.Classify()
	if err != nil {
		return "", "", fmt.Errorf("container %s: %w", id, err)
	}
	if kind != KindContainer {
		return kind, id, nil
	}
	if err := checkID("annotation of its sandbox", a.SandboxID()); err != nil {
		return "", "", fmt.Errorf("finding the sandbox of container %s: %w", id, err)
	}
	return kind, a.SandboxID(), nil
}

// readBundle fills Kind and SandboxID from config.json.
func (p *Params) readBundle() error {
	p.Kind, p.SandboxID = KindSingle, p.ID
	name := filepath.Join(p.Bundle, "config.json")
	f, err := paths.OpenRegular(name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(p.Bundle); err != nil {
			return fmt.Errorf("looking at the bundle of %s: %w", p.ID, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the bundle of %s: %w", p.ID, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return fmt.Errorf("reading the bundle of %s: %w", p.ID, err)
	}
	if p.Kind, p.SandboxID, err = parseSpec(p.ID, data); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}

// parseSpec takes kind and sandbox from an OCI runtime specification. All of it is parsed, so that half a file is an error.
func parseSpec(id string, data []byte) (Kind, string, error) {
	if len(data) > maxSpec {
		return "", "", fmt.Errorf("more than %d bytes", maxSpec)
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", "", fmt.Errorf("%w\nhint: the file was not written whole; containerd makes a new bundle when the container is created again", err)
	}
	return Classify(id, spec.Annotations)
}
