package snapshotter

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/types"

	"github.com/cloister/cloister/host/blockmount"
	"github.com/cloister/cloister/layer/sealed"
)

// applySealed gives a snapshot a sealed layer. The blob is the layer already; nothing of it can be read on this host, so that it is mounted
// by guests only. What stands for the digest of a tar, sealed.DiffID, binds what the descriptor says: the descriptor is whoever made the
// image's, and neither may it claim the place of a plain layer nor find a layer here that was opened in another way.
func (s *Snapshotter) applySealed(ctx context.Context, id string, d *types.Descriptor) (stored, error) {
	if l, err := s.linked(id); !errors.Is(err, os.ErrNotExist) {
		return l, err
	}
	want, err := sealedLayer(d)
	if err != nil {
		return stored{}, err
	}
	diffID := sealed.DiffID(d.GetDigest(), want.Root, want.HashOffset, want.KeyID)
	name := "sealed-" + strings.TrimPrefix(diffID, "sha256:")
	l, ok := s.have(name)
	if !ok {
		l, err = s.keep(func(f *os.File, _ string) (made, error) {
			return made{want, diffID, name}, s.copyBlob(ctx, f, d)
		})
		if err != nil {
			return stored{}, err
		}
	}
	defer s.unpin(l)
	return l, s.link(l, id)
}

// sealedLayer reads what a descriptor says of its layer.
func sealedLayer(d *types.Descriptor) (blockmount.Layer, error) {
	notes := d.GetAnnotations()
	offset, err := strconv.ParseInt(notes[sealed.AnnotationHashOffset], 10, 64)
	l := blockmount.Layer{Root: notes[sealed.AnnotationRoot], HashOffset: offset, KeyID: notes[sealed.AnnotationKeyID]}
	switch v, c := notes[sealed.AnnotationVersion], notes[sealed.AnnotationCipher]; {
	case v != sealed.Version || c != sealed.Cipher:
		return l, fmt.Errorf("version %.20q and cipher %.40q, want %s and %s", v, c, sealed.Version, sealed.Cipher)
	case err != nil || offset >= d.GetSize():
		return l, fmt.Errorf("hash offset %.40q in a layer of %d bytes", notes[sealed.AnnotationHashOffset], d.GetSize())
	case !digestForm.MatchString(d.GetDigest()):
		return l, fmt.Errorf("digest %.80q, want a SHA-256", d.GetDigest())
	}
	if err := sealed.CheckKeyID(l.KeyID); err != nil {
		return l, err
	}
	_, err = l.Sidecar() // checks the root hash and the offset
	return l, err
}

// copyBlob copies a blob as it is.
func (s *Snapshotter) copyBlob(ctx context.Context, f *os.File, d *types.Descriptor) error {
	blob, err := s.content.Open(ctx, d.GetDigest())
	if err != nil {
		return err
	}
	defer blob.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), &bounded{r: blob, left: min(d.GetSize()+1, s.cfg.MaxLayerGiB<<30)})
	if err != nil {
		return err
	}
	if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); n != d.GetSize() || got != d.GetDigest() {
		return fmt.Errorf("the blob has %d bytes with the digest %s, want %d with %s", n, got, d.GetSize(), d.GetDigest())
	}
	return nil
}
