package volume

import (
	"errors"
	"path"
	"regexp"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister/cloister/wire/agent"
)

// imageVolumePath is where containerd's CRI keeps a directory that an image declares as a volume (VOLUME in a Dockerfile): it makes one
// for each container, copies what the image has there, and mounts it.
var imageVolumePath = regexp.MustCompile(`^/.+/io\.containerd\.grpc\.v1\.cri/containers/([^/]+)/volumes/[0-9a-f]+$`)

// fromImage says whether a source is such a directory of this container.
func (b *build) fromImage(source string) bool {
	m := imageVolumePath.FindStringSubmatch(source)
	return m != nil && m[1] == b.req.ID
}

// hasImageVolumes says whether the guest makes any for the container.
func (b *build) hasImageVolumes() bool {
	return b.req.ImageVolumes && b.set.opts.Share == nil && slices.ContainsFunc(b.req.Spec.Mounts, func(m specs.Mount) bool { return b.fromImage(m.Source) })
}

// imageVolume is the mount of such a directory in a guest that shares nothing. The guest makes it and fills it from the image, which it
// has verified; what containerd has put there stays on the host. A guest that cannot gets no mount: then the container finds what the
// image has at that place in its root, where it can write unless all of that is read-only.
func (b *build) imageVolume(m specs.Mount) (*specs.Mount, error) {
	m.Destination = path.Clean(m.Destination)
	if !b.req.ImageVolumes {
		b.set.log.Info("a volume of the image is left out, because the guest does not make those: it is a directory of the container's root",
			"container", b.req.ID, "volume", m.Destination, "read_only_root", b.out.RootReadonly)
		return nil, nil
	}
	if m.Destination == "/" {
		return nil, errors.New("a mount at / would replace the root file system")
	}
	name := agent.ImageVolume(b.req.ID, b.imageVolumes, m.Destination)
	b.imageVolumes++
	return bindAt(m, path.Join(guestShared, name), guestOptions(m.Options)), nil
}
