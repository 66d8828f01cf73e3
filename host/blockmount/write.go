package blockmount

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Root is a container's root to be mounted.
type Root struct {
	Layers  []string // directories of the layers, topmost first
	Upper   string   // directory for what is written; empty for a read-only root
	Work    string   // overlayfs's own directory, on the file system of Upper
	Options []string // more options of the overlay
}

// Overlay is the form that any containerd mounts, over layers that are mounted already.
func (r Root) Overlay() []Mount {
	if len(r.Layers) == 1 && r.Upper == "" {
		return []Mount{{Type: "bind", Source: filepath.Join(r.Layers[0], MountPoint), Options: []string{"ro", "rbind"}}}
	}
	lowers := make([]string, len(r.Layers))
	for i, dir := range r.Layers {
		lowers[i] = filepath.Join(dir, MountPoint)
	}
	return []Mount{{Type: "overlay", Source: "overlay", Options: r.overlay("lowerdir=" + strings.Join(lowers, ":"))}}
}

// EROFS is the form of containerd's own EROFS snapshotter, for containerd 2.2 and later. If one of the layers is sealed, the form is one
// that only Layers understands.
func (r Root) EROFS() ([]Mount, error) {
	for _, dir := range r.Layers {
		l, err := Read(filepath.Join(dir, LayerFile))
		if err != nil {
			return nil, err
		}
		if l.KeyID != "" {
			return r.sealed(), nil
		}
	}
	var mounts []Mount
	for _, dir := range r.Layers {
		mounts = append(mounts, Mount{Type: typeLayer, Source: filepath.Join(dir, LayerFile),
			Options: []string{"ro", "loop", sidecarOption + filepath.Join(dir, SidecarFile)}})
	}
	if len(mounts) == 1 && r.Upper == "" {
		return mounts, nil
	}
	lower := "lowerdir={{ mount 0 }}"
	if len(mounts) > 1 {
		lower = fmt.Sprintf("lowerdir={{ overlay 0 %d }}", len(mounts)-1)
	}
	return append(mounts, Mount{Type: typeOverlay, Source: "overlay", Options: r.overlay(lower)}), nil
}

// sealed is the form of a root with a sealed layer. Its plain layers have the type of the sealed ones, too: containerd would mount them
// before the shim sees the list. There is no option that makes containerd act on a mount (loop, templates).
func (r Root) sealed() []Mount {
	var mounts []Mount
	for _, dir := range r.Layers {
		mounts = append(mounts, Mount{Type: typeSealed, Source: filepath.Join(dir, LayerFile), Options: []string{"ro"}})
	}
	if len(mounts) == 1 && r.Upper == "" {
		return mounts
	}
	return append(mounts, Mount{Type: typeSealedOverlay, Source: "overlay", Options: r.overlay()})
}

func (r Root) overlay(lower ...string) []string {
	options := append([]string{}, r.Options...)
	if r.Upper != "" {
		options = append(options, "workdir="+r.Work, "upperdir="+r.Upper)
	}
	return append(options, lower...)
}
