package cgroup

import (
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/cgroups/systemd"
)

// Location is where a sandbox's cgroup is: the cgroupsPath of the pod's sandbox container, in one of two forms.
//
//	/kubepods/burstable/pod1/ID          a path below the mount point of each controller
//	kubepods-burstable-pod1.slice:cri-containerd:ID    a scope of systemd: slice, prefix, name
//
// On a host without systemd the second form is the path at which systemd would have put it.
type Location struct {
	// Path is set for the first form.
	Path string `json:"path,omitempty"`
	// Slice, Prefix and Name are set for the second.
	Slice  string `json:"slice,omitempty"`
	Prefix string `json:"prefix,omitempty"`
	Name   string `json:"name,omitempty"`
}

// Bounds of a cgroupsPath; a component is a file name.
const (
	maxPath      = 2048
	maxComponent = 255
	maxDepth     = 32
)

// ParseLocation reads a cgroupsPath. It refuses what would be the root, or lead out of it: everything in a sandbox's cgroup is killed
// when the sandbox is removed.
func ParseLocation(cgroupsPath string) (Location, error) {
	bad := func(why string) (Location, error) {
		return Location{}, fmt.Errorf("cgroupsPath is %.200q, %s: want /PATH or SLICE:PREFIX:NAME", cgroupsPath, why)
	}
	if cgroupsPath == "" || len(cgroupsPath) > maxPath {
		return bad("which is empty or too long")
	}
	for _, r := range cgroupsPath {
		if r <= ' ' || r == 0x7f || r == '\\' {
			return bad("with a space, a backslash or a control character")
		}
	}
	if strings.HasPrefix(cgroupsPath, "/") {
		if clean := path.Clean(cgroupsPath); clean != strings.TrimSuffix(cgroupsPath, "/") || clean == "/" {
			return bad("which is the root, or has empty or dotted parts")
		}
		parts := strings.Split(strings.Trim(cgroupsPath, "/"), "/")
		for _, p := range parts {
			if len(p) > maxComponent || p == ".." || strings.HasPrefix(p, "cgroup.") {
				return bad("with a part that no cgroup can have")
			}
		}
		if len(parts) > maxDepth {
			return bad("which is too deep")
		}
		return Location{Path: path.Clean(cgroupsPath)}, nil
	}
	parts := strings.Split(cgroupsPath, ":")
	if len(parts) != 3 || strings.Contains(cgroupsPath, "/") {
		return bad("which has neither form")
	}
	l := Location{Slice: parts[0], Prefix: parts[1], Name: parts[2]}
	if l.Slice == "" {
		l.Slice = "system.slice" // as runc does
	}
	if l.Name == "" || strings.HasSuffix(l.Name, ".slice") || len(l.unit()) > maxComponent || strings.HasPrefix(l.unit(), ".") {
		return bad("without a name of a scope")
	}
	if expanded, err := systemd.ExpandSlice(l.Slice); err != nil || len(expanded) > maxPath {
		return bad("with a slice that is none")
	}
	return l, nil
}

// unit is the name of the scope.
func (l Location) unit() string {
	if l.Prefix == "" {
		return l.Name + ".scope"
	}
	return l.Prefix + "-" + l.Name + ".scope"
}

// Systemd says whether the location is in the form of systemd.
func (l Location) Systemd() bool { return l.Path == "" }

// Dir is the path below the mount point of each controller.
func (l Location) Dir() (string, error) {
	if !l.Systemd() {
		return l.Path, nil
	}
	slice, err := systemd.ExpandSlice(l.Slice)
	if err != nil {
		return "", fmt.Errorf("cgroup slice %q: %w", l.Slice, err)
	}
	return path.Join(slice, l.unit()), nil
}

// String is the location as it was given.
func (l Location) String() string {
	if l.Systemd() {
		return l.Slice + ":" + l.Prefix + ":" + l.Name
	}
	return l.Path
}
