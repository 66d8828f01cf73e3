package image

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cloister/cloister/internal/pemkey"
)

const (
	cosignPayloadType = types.MediaType("application/vnd.dev.cosign.simplesigning.v1+json")
	cosignAnnotation  = "dev.cosignproject.cosign/signature"
	cosignSigned      = "cosign container image signature"
)

// GenerateKeyPair makes an ECDSA P-256 key pair for signing images: PKCS #8 and SubjectPublicKeyInfo, both PEM.
// The private key is not encrypted: keep the file away from others.
func GenerateKeyPair() (privatePEM, publicPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generating signing key: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("generating signing key: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, nil, fmt.Errorf("generating signing key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), nil
}

// Signed says what Sign did.
type Signed struct {
	Reference string // registry/repository@digest
	Digest    string // of the signed manifest or index
	Signature string // registry/repository:sha256-<hex>.sig
}

// SignOptions refine a signature.
type SignOptions struct {
	Options
	// Identity is the name the signature is for; default: the image's registry/repository.
	Identity string
}

// Sign signs the manifest or index that ref names with a private key (PEM, see package pemkey), in cosign's
// format: a simple-signing payload in a .sig tag beside the image. Signatures already there are kept.
func Sign(ctx context.Context, ref string, privatePEM []byte, opts SignOptions) (Signed, error) {
	signer, err := pemkey.Private(privatePEM)
	if err != nil {
		return Signed{}, fmt.Errorf("signing %s: reading the signing key: %w\nhint: `cloister key new --type signing FILE` makes one", ref, err)
	}
	parsed, err := opts.parse(ref)
	if err != nil {
		return Signed{}, err
	}
	digest, err := manifestDigest(ctx, parsed, opts.Options)
	if err != nil {
		return Signed{}, fmt.Errorf("signing %s: %w", ref, err)
	}
	repo := parsed.Context()
	identity := opts.Identity
	if identity == "" {
		identity = repo.Name()
	}
	payload, err := cosignPayload(identity, digest)
	if err != nil {
		return Signed{}, fmt.Errorf("signing %s: %w", ref, err)
	}
	signature, err := signPayload(signer, payload)
	if err != nil {
		return Signed{}, fmt.Errorf("signing %s: %w", ref, err)
	}
	tag := repo.Tag(signatureTag(digest))
	img, err := appendSignature(ctx, tag, payload, signature, opts.Options)
	if err != nil {
		return Signed{}, fmt.Errorf("signing %s: %w", ref, err)
	}
	if err := remote.Write(tag, img, opts.remote(ctx)...); err != nil {
		return Signed{}, fmt.Errorf("pushing the signature of %s: %w", ref, err)
	}
	return Signed{Reference: repo.Digest(digest.String()).Name(), Digest: digest.String(), Signature: tag.Name()}, nil
}

// manifestDigest is the digest of the manifest or index that ref names, computed from its content: a registry that only
// says a digest could have anything signed.
func manifestDigest(ctx context.Context, ref name.Reference, opts Options) (v1.Hash, error) {
	claim, err := remote.Head(ref, opts.remote(ctx)...)
	if err != nil {
		return v1.Hash{}, err
	}
	desc, err := remote.Get(ref, opts.remote(ctx)...)
	if err != nil {
		return v1.Hash{}, err
	}
	if !desc.MediaType.IsImage() && !desc.MediaType.IsIndex() {
		return v1.Hash{}, fmt.Errorf("it is of type %q, expected an image manifest or index", desc.MediaType)
	}
	hash, err := v1.Hasher(claim.Digest.Algorithm)
	if err != nil {
		return v1.Hash{}, err
	}
	hash.Write(desc.Manifest)
	digest := v1.Hash{Algorithm: claim.Digest.Algorithm, Hex: hex.EncodeToString(hash.Sum(nil))}
	if digest != claim.Digest {
		return v1.Hash{}, fmt.Errorf("the registry says that it names %s, the manifest it gives is %s", claim.Digest, digest)
	}
	return digest, nil
}

func signatureTag(d v1.Hash) string { return d.Algorithm + "-" + d.Hex + ".sig" }

func cosignPayload(identity string, digest v1.Hash) ([]byte, error) {
	type m map[string]any
	return json.Marshal(m{
		"critical": m{
			"identity": m{"docker-reference": identity},
			"image":    m{"docker-manifest-digest": digest.String()},
			"type":     cosignSigned,
		},
		"optional": nil,
	})
}

func signPayload(signer crypto.Signer, payload []byte) ([]byte, error) {
	if _, ok := signer.(ed25519.PrivateKey); ok {
		return signer.Sign(rand.Reader, payload, crypto.Hash(0))
	}
	sum := sha256.Sum256(payload)
	return signer.Sign(rand.Reader, sum[:], crypto.SHA256)
}

// appendSignature adds a signature to the signature image at tag, or starts one.
func appendSignature(ctx context.Context, tag name.Tag, payload, signature []byte, opts Options) (v1.Image, error) {
	encoded := base64.StdEncoding.EncodeToString(signature)
	var descs []v1.Descriptor
	var layers []partial.CompressedLayer
	var diffIDs []v1.Hash
	old, err := remote.Image(tag, opts.remote(ctx)...)
	switch {
	case err == nil:
		m, err := old.Manifest()
		if err != nil {
			return nil, fmt.Errorf("reading the signatures already there: %w", err)
		}
		for _, d := range m.Layers {
			l, err := old.LayerByDigest(d.Digest)
			if err != nil {
				return nil, fmt.Errorf("reading the signatures already there: %w", err)
			}
			descs, layers, diffIDs = append(descs, d), append(layers, l), append(diffIDs, d.Digest)
		}
	case !notFound(err):
		return nil, fmt.Errorf("looking for signatures already there: %w", err)
	}
	l := static.NewLayer(payload, cosignPayloadType)
	hash, err := l.Digest()
	if err != nil {
		return nil, err
	}
	desc := v1.Descriptor{MediaType: cosignPayloadType, Size: int64(len(payload)), Digest: hash,
		Annotations: map[string]string{cosignAnnotation: encoded}}
	descs, layers, diffIDs = append(descs, desc), append(layers, l), append(diffIDs, hash)
	config, err := json.Marshal(v1.ConfigFile{RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs}})
	if err != nil {
		return nil, err
	}
	return assemble(config, types.OCIConfigJSON, descs, layers, nil)
}

func notFound(err error) bool {
	var te *transport.Error
	return errors.As(err, &te) && te.StatusCode == http.StatusNotFound
}
