package imagesource

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/cloister/cloister/layer"
	"github.com/cloister/cloister/layer/sealed"
)

// found is what a layer says about a file.
type found struct {
	Kind    string `json:"kind"` // "" nothing, "file", or "gone": a layer below does not count
	Content []byte `json:"content,omitempty"`
}

const (
	kindFile = "file"
	kindGone = "gone"
)

// facts are what is kept of a layer.
type facts struct {
	DiffID string `json:"diff_id"`
	Passwd found  `json:"passwd"`
	Group  found  `json:"group"`
	Root   string `json:"root,omitempty"`

	HashOffset int64 `json:"hash_offset,omitempty"`
}

const (
	maxUsers = 1 << 20 // bytes of /etc/passwd or /etc/group
	// maxWindow is how much memory a zstd stream may ask for.
	maxWindow = 128 << 20
)

// encrypted says whether a layer can only be read with a key.
func encrypted(d v1.Descriptor) bool { return strings.HasSuffix(string(d.MediaType), "+encrypted") }

// sealedLayer reads what the manifest says of a sealed layer (docs/reference/sealed-layers.md). Its root is that of the
// ciphertext, and a wrong one opens nothing.
func sealedLayer(d v1.Descriptor) (l Layer, ok bool, err error) {
	if !strings.HasSuffix(string(d.MediaType), "+sealed") {
		return Layer{}, false, nil
	}
	l.Root, l.KeyID = d.Annotations[sealed.AnnotationRoot], d.Annotations[sealed.AnnotationKeyID]
	if version := d.Annotations[sealed.AnnotationVersion]; version != sealed.Version {
		return l, true, fmt.Errorf("layer %s is sealed in version %q, expected %s", d.Digest, version, sealed.Version)
	}
	if len(l.Root) != 64 || strings.Trim(l.Root, "0123456789abcdef") != "" || sealed.CheckKeyID(l.KeyID) != nil || strings.Contains(l.KeyID, `"`) {
		return l, true, fmt.Errorf("sealed layer %s does not name its root hash and key", d.Digest)
	}
	offset := d.Annotations[sealed.AnnotationHashOffset]
	l.HashOffset, err = strconv.ParseInt(offset, 10, 64)
	if err != nil || l.HashOffset <= 0 || l.HashOffset%sealed.BlockSize != 0 || strconv.FormatInt(l.HashOffset, 10) != offset {
		return l, true, fmt.Errorf("sealed layer %s has the hash offset %.40q, expected a multiple of %d", d.Digest, offset, sealed.BlockSize)
	}
	return l, true, nil
}

// decompress opens a layer by what its first bytes are; types of media are often wrong.
func decompress(r io.Reader) (io.Reader, func(), error) {
	in := bufio.NewReaderSize(r, 64<<10)
	magic, err := in.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		return z, func() {}, err
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return in, func() {}, nil
}

// scan reads a layer once: it checks the blob, finds the users, and computes the root if roots is set. With unpacked set,
// the digest is that of the tar, and the blob may be compressed in some way.
func scan(ctx context.Context, blob io.Reader, d v1.Descriptor, unpacked, roots bool, recipe layer.Recipe, maxSize int64) (*facts, error) {
	c := blob
	if !unpacked {
		if d.Size <= 0 { // it bounds what is read: compression has ways to say nothing for ever
			return nil, fmt.Errorf("its descriptor says that it has %d bytes", d.Size)
		}
		var err error
		if c, err = checkBlob(blob, d); err != nil {
			return nil, err
		}
	}
	plain, end, err := decompress(c)
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	defer end()
	plain = &bounded{r: plain, left: maxSize}
	f := &facts{}
	if roots {
		err = f.withRoot(ctx, plain, layer.Options{Recipe: recipe, Descriptor: d.Digest.String(), MaxSize: maxSize})
	} else {
		sum := sha256.New()
		err = f.users(io.TeeReader(plain, sum))
		f.DiffID = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	}
	if err != nil {
		return nil, err
	}
	// What follows the compressed stream belongs to the blob too.
	if _, err := io.Copy(io.Discard, c); err != nil {
		return nil, err
	}
	if unpacked && f.DiffID != d.Digest.String() {
		return nil, fmt.Errorf("it unpacks to %s, expected %s", f.DiffID, d.Digest)
	}
	return f, nil
}

// withRoot builds the layer, and looks for the users in the same stream.
func (f *facts) withRoot(ctx context.Context, plain io.Reader, o layer.Options) error {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := f.users(pr)
		pr.CloseWithError(err) // nil: more writes fail, which none does after the end
		done <- err
	}()
	result, err := layer.Build(ctx, io.TeeReader(plain, pw), nil, o)
	pw.CloseWithError(err)
	if uerr := <-done; err == nil {
		err = uerr
	}
	if err != nil {
		return err
	}
	f.DiffID, f.Root, f.HashOffset = result.DiffID, result.Root, result.HashOffset
	return nil
}

// users reads a tar to its end. Of several entries for a path the last counts.
func (f *facts) users(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return fmt.Errorf("reading the layer's tar: %w", err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/") // as runtimes do: nothing leads out of the root
		switch name {
		case "etc/.wh..wh..opq", ".wh.etc", ".wh..wh..opq":
			f.Passwd.gone()
			f.Group.gone()
		case "etc/.wh.passwd":
			f.Passwd.gone()
		case "etc/.wh.group":
			f.Group.gone()
		case "etc/passwd":
			err = f.Passwd.take(h, tr)
		case "etc/group":
			err = f.Group.take(h, tr)
		case "etc":
			if h.Typeflag != tar.TypeDir { // a link or a file hides what is below it
				f.Passwd, f.Group = found{Kind: kindGone}, found{Kind: kindGone}
			}
		}
		if err != nil {
			return err
		}
	}
}

// gone hides what lower layers have, not what this one has.
func (f *found) gone() {
	if f.Kind == "" {
		f.Kind = kindGone
	}
}

func (f *found) take(h *tar.Header, r io.Reader) error {
	if h.Typeflag != tar.TypeReg { // links are not followed: no user is known then
		*f = found{Kind: kindGone}
		return nil
	}
	if h.Size > maxUsers {
		return fmt.Errorf("%s has %d bytes, the limit is %d", h.Name, h.Size, maxUsers)
	}
	content, err := io.ReadAll(io.LimitReader(r, maxUsers))
	if err != nil {
		return fmt.Errorf("reading %s: %w", h.Name, err)
	}
	*f = found{Kind: kindFile, Content: content}
	return nil
}

// bounded ends a stream that is longer than allowed with an error.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errors.New("the layer is larger than the limit when it is decompressed")
	}
	return n, err
}
