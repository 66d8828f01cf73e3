// Package imagesource finds images and what a policy must know of them: configuration, users, digests, and the roots of
// their layers as block devices. Images come from registries, OCI layouts, archives or a node's content store. Layers are
// read as streams, each once; nothing is unpacked.
package imagesource

import "context"

// Image is one image for one architecture.
type Image struct {
	Reference string // as asked for
	// Found is where the image came from, when it was found there by its tag alone: the place does not say of which image the tag is.
	Found    string
	Digest   string // what the reference names: an index or a manifest
	Manifest string // the manifest of the architecture
	Config   Config
	// Passwd and Group are the files /etc/passwd and /etc/group; nil if the image has none.
	Passwd, Group []byte
	Layers        []Layer // the lowest first
}

// Config is what an image says about its process.
type Config struct {
	User       string
	Env        []string
	Entrypoint []string
	Cmd        []string
	WorkingDir string
	StopSignal string
	Volumes    []string // sorted
}

// Layer is one layer of an image.
type Layer struct {
	Digest string // of the compressed blob
	DiffID string // of the tar
	Root   string // of the hash tree over the layer as a block device; empty if it was not asked for
	// HashOffset is where the data of the block device ends and the superblock of the tree is, in bytes; 0 without a root.
	HashOffset int64
	KeyID      string // of a sealed layer: the broker's resource that opens it
}

// Need says what of an image is wanted beyond its configuration.
type Need struct {
	Users bool // passwd and group
	Roots bool
}

// Source gives images. Errors of a reference that it does not know wrap ErrNotFound.
type Source interface {
	Image(ctx context.Context, reference string, need Need) (*Image, error)
}
