package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Kind is what a bundle stands for.
type Kind string

// Kinds of bundles.
const (
	// KindSingle is a container with no pod: it gets a shim and a machine of its own. A bundle without config.json, which containerd
	// makes for the sandbox service, is one too.
	KindSingle Kind = "single"
	// KindSandbox is a pod's sandbox (pause) container.
	KindSandbox Kind = "sandbox"
	// KindContainer is a container of a pod that exists: the sandbox's shim serves it.
	KindContainer Kind = "container"
)

// maxSpec bounds config.json: etcd limits what a pod can hold to 1.5 MB, CDI and mounts add to it.
const maxSpec = 16 << 20

// annotationNames say how each caller writes a container's kind and sandbox.
type annotationNames struct{ kind, sandbox string }

// callers are those whose annotations are understood, section 4 of the shim's specification: containerd, CRI-O, dockershim.
func callers() []annotationNames {
	return []annotationNames{
		{"io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"},
		{"io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"},
		{"io.kubernetes.docker.type", "io.kubernetes.sandbox.id"},
	}
}

// Classify says what the annotations of a container with this id make it, and to which sandbox it belongs.
func Classify(id string, annotations map[string]string) (Kind, string, error) {
	for _, a := range callers() {
		kind, ok := annotations[a.kind]
		if !ok {
			continue
		}
		switch kind {
		case "sandbox", "podsandbox":
			return KindSandbox, id, nil
		case "container":
			sandbox := annotations[a.sandbox]
			if err := checkID("annotation "+a.sandbox, sandbox); err != nil {
				return "", "", fmt.Errorf("finding the sandbox of container %s: %w", id, err)
			}
			return KindContainer, sandbox, nil
		default:
			return "", "", fmt.Errorf("container %s: annotation %s is %q: want sandbox or container", id, a.kind, clip(kind))
		}
	}
	return KindSingle, id, nil
}

// readBundle fills Kind and SandboxID from config.json.
func (p *Params) readBundle() error {
	p.Kind, p.SandboxID = KindSingle, p.ID
	name := filepath.Join(p.Bundle, "config.json")
	f, err := os.Open(name)
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
