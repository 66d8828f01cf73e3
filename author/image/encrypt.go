package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cloister/cloister/wire/imagecrypt"
)

// Key is a key encryption key: 32 bytes, which the broker has under KID (a resource URI like
// kbs:///default/image-kek/demo).
type Key struct {
	KID string
	KEK []byte
}

// String keeps the key out of logs.
func (k Key) String() string { return k.KID }

// GoString keeps the key out of logs.
func (k Key) GoString() string { return k.KID }

// Encrypted says what Encrypt did.
type Encrypted struct {
	Digest string // of the encrypted manifest or index
	Layers int    // encrypted layers
	Bytes  int64  // their size
}

// Encrypt copies the image or index src to dst with every layer encrypted. Any one of the keys opens it. Layers that
// are encrypted already are an error. The image configuration, with its environment and command line, stays in clear.
func Encrypt(ctx context.Context, src, dst string, keys []Key, opts EncryptOptions) (Encrypted, error) {
	if len(keys) == 0 {
		return Encrypted{}, errors.New("encrypting image: no key is given")
	}
	for _, k := range keys {
		if len(k.KEK) != 32 {
			return Encrypted{}, fmt.Errorf("encrypting image: key %s has %d bytes, expected 32", k.KID, len(k.KEK))
		}
		if !strings.HasPrefix(k.KID, "kbs:///") && !strings.HasPrefix(k.KID, "kbs+plugin:///") {
			return Encrypted{}, fmt.Errorf("encrypting image: key id %q is not a resource URI like kbs:///default/image-kek/name", k.KID)
		}
	}
	e := &encryption{keys: keys}
	e.remaking = remaking{doing: "encrypting", layer: e.layer}
	digest, err := e.run(ctx, src, dst, opts)
	if err != nil {
		return Encrypted{}, err
	}
	e.result.Digest = digest
	return e.result, nil
}

// encryption is one run of Encrypt.
type encryption struct {
	remaking
	keys   []Key
	result Encrypted
}

// plainMediaType is the OCI media type that an encrypted layer's type is derived from.
func plainMediaType(t types.MediaType) string {
	switch t {
	case types.DockerLayer, types.DockerForeignLayer:
		return string(types.OCILayer)
	case types.DockerUncompressedLayer:
		return string(types.OCIUncompressedLayer)
	}
	return string(t)
}

func (e *encryption) layer(ctx context.Context, d v1.Descriptor, l v1.Layer) (made, error) {
	if imagecrypt.IsEncrypted(string(d.MediaType)) {
		return made{}, errors.New("it is encrypted already")
	}
	mediaType, err := imagecrypt.EncryptedMediaType(plainMediaType(d.MediaType))
	if err != nil {
		return made{}, err
	}
	src, err := l.Compressed()
	if err != nil {
		return made{}, err
	}
	defer src.Close()
	encrypted, finish := imagecrypt.EncryptReader(&contextReader{ctx, src}, imagecrypt.NewLayerKey())
	blob, err := e.spool(ctx, types.MediaType(mediaType), func(f *os.File) (int64, error) { return io.Copy(f, encrypted) })
	if err != nil {
		return made{}, err
	}
	pub, priv, err := finish()
	if err != nil {
		return made{}, err
	}
	if blob.size != d.Size || priv.Digest != d.Digest.String() {
		return made{}, fmt.Errorf("source has %d bytes with digest %s, its manifest says %d", blob.size, priv.Digest, d.Size)
	}
	out := made{blob.descriptor(), blob}
	if out.desc.Annotations, err = e.annotate(d.Annotations, pub, priv); err != nil {
		return out, err
	}
	e.result.Layers++
	e.result.Bytes += blob.size
	return out, nil
}

// annotate adds the public options and the key, wrapped for every recipient, to a layer's annotations.
func (e *encryption) annotate(old map[string]string, pub imagecrypt.PublicOptions, priv imagecrypt.PrivateOptions) (map[string]string, error) {
	var packets []imagecrypt.Packet
	for _, k := range e.keys {
		p, err := imagecrypt.WrapPLBCO(k.KEK, k.KID, priv)
		if err != nil {
			return nil, err
		}
		packets = append(packets, p)
	}
	keys, err := imagecrypt.EncodePackets(packets...)
	if err != nil {
		return nil, err
	}
	public, err := imagecrypt.EncodePublicOptions(pub)
	if err != nil {
		return nil, err
	}
	out := map[string]string{imagecrypt.AnnotationKeys: keys, imagecrypt.AnnotationPublicOptions: public}
	for k, v := range old {
		if !strings.HasPrefix(k, "org.opencontainers.image.enc.") {
			out[k] = v
		}
	}
	return out, nil
}

// KeyIDs lists the keys of an inspected image, each once.
func (p Platform) KeyIDs() []string {
	var out []string
	for _, l := range p.Layers {
		out = append(out, l.KeyIDs...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var _ json.Marshaler = Key{}

// MarshalJSON keeps the key out of reports.
func (k Key) MarshalJSON() ([]byte, error) { return json.Marshal(map[string]string{"kid": k.KID}) }
