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

// EROFS is the form of containerd's own EROFS snapshotter, for containerd 2.2 and later.
func (r Root) EROFS() []Mount {
	var mounts []Mount
	for _, dir := range r.Layers {
		mounts = append(mounts, Mount{Type: "erofs", Source: filepath.Join(dir, LayerFile),
			Options: []string{"ro", "loop", sidecarOption + filepath.Join(dir, SidecarFile)}})
	}
	if len(mounts) == 1 && r.Upper == "" {
		return mounts
	}
	lower := "lowerdir={{ mount 0 }}"
	if len(mounts) > 1 {
		lower = fmt.Sprintf("lowerdir={{ overlay 0 %d }}", len(mounts)-1)
	}
	return append(mounts, Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: r.overlay(lower)})
}

func (r Root) overlay(lower string) []string {
	options := append([]string{}, r.Options...)
	if r.Upper != "" {
		options = append(options, "workdir="+r.Work, "upperdir="+r.Upper)
	}
	return append(options, lower)
}
