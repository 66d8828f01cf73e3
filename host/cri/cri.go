// Package cri reads what containerd and CRI-O write into the annotations of an OCI specification (runtime-shim.md section 4).
package cri

import (
	"fmt"
	"strings"
)

// Kind is what a container is for its runtime.
type Kind string

// The kinds, as the guest is told them, too.
const (
	KindSandbox   Kind = "pod_sandbox"      // the first container of a pod, which starts the VM
	KindContainer Kind = "pod_container"    // a container of a pod that runs
	KindSingle    Kind = "single_container" // a container with a VM of its own
)

// Annotations that are written, or taken away, on the way to the guest.
const (
	AnnotationKind    = "io.katacontainers.pkg.oci.container_type"
	AnnotationBundle  = "io.katacontainers.pkg.oci.bundle_path"
	AnnotationNetwork = "nerdctl/network-namespace" // of the pod's first container: the path on the host
)

// names of the same fact: containerd, CRI-O, dockershim.
var (
	kinds      = []string{"io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType", "io.kubernetes.docker.type"}
	sandboxIDs = []string{"io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID", "io.kubernetes.sandbox.id"}
	names      = []string{"io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"}
	namespaces = []string{"io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace"}
	containers = []string{"io.kubernetes.cri.container-name", "io.kubernetes.cri-o.ContainerName"}
	images     = []string{"io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"}
)

// Annotations of a specification.
type Annotations map[string]string

// Kind is what the container is. A container that no pod is named for has a VM of its own.
func (a Annotations) Kind() Kind {
	kind, _ := a.Classify()
	return kind
}

// Classify is Kind for those who have to be sure: a word that nobody knows is an error.
func (a Annotations) Classify() (Kind, error) {
	switch word := a.first(kinds); word {
	case "":
		return KindSingle, nil
	case "sandbox", "podsandbox":
		return KindSandbox, nil
	case "container":
		return KindContainer, nil
	default:
		return KindSingle, fmt.Errorf("the annotation of the container's type is %.80q: want sandbox or container", word)
	}
}

// SandboxID is the pod of a container, or "".
func (a Annotations) SandboxID() string { return a.first(sandboxIDs) }

// PodName and the others are "" when nobody has named them.
func (a Annotations) PodName() string       { return a.first(names) }
func (a Annotations) PodNamespace() string  { return a.first(namespaces) }
func (a Annotations) ContainerName() string { return a.first(containers) }
func (a Annotations) ImageName() string     { return a.first(images) }

func (a Annotations) first(keys []string) string {
	for _, k := range keys {
		if v := strings.TrimSpace(a[k]); v != "" {
			return v
		}
	}
	return ""
}
