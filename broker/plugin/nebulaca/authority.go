package nebulaca

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/slackhq/nebula/cert"

	"github.com/cloister/cloister/broker/atomicfile"
	"github.com/cloister/cloister/internal/smallfile"
)

const maxFile = 64 << 10

// authority is a certificate authority with its key.
type authority struct {
	cert cert.Certificate
	pem  []byte
	key  []byte
}

// load reads the authority in dir, or makes one when neither of its files is there.
func load(dir string, c CAConfig, now time.Time) (*authority, error) {
	crtFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	_, crtErr := os.Lstat(crtFile)
	_, keyErr := os.Lstat(keyFile)
	if errors.Is(crtErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if err := create(crtFile, keyFile, c, now); err != nil {
			return nil, fmt.Errorf("making the Nebula authority: %w", err)
		}
	}
	info, err := os.Stat(keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the key of the Nebula authority: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("key of the Nebula authority %s has mode %04o, want 0600: others could read it", keyFile, perm)
	}
	keyPEM, err := smallfile.Read(keyFile, maxFile)
	if err != nil {
		return nil, err
	}
	a := &authority{}
	if a.pem, err = smallfile.Read(crtFile, maxFile); err != nil {
		return nil, err
	}
	if a.cert, _, err = cert.UnmarshalCertificateFromPEM(a.pem); err != nil {
		return nil, fmt.Errorf("reading %s: %w", crtFile, err)
	}
	var curve cert.Curve
	// The library's text names the kind of the key only.
	if a.key, _, curve, err = cert.UnmarshalSigningPrivateKeyFromPEM(keyPEM); err != nil {
		return nil, fmt.Errorf("reading %s: %w", keyFile, err)
	}
	if err := a.cert.VerifyPrivateKey(curve, a.key); err != nil || curve != a.cert.Curve() {
		return nil, fmt.Errorf("%s is not the key of %s", keyFile, crtFile)
	}
	if !a.cert.IsCA() || !a.cert.CheckSignature(a.cert.PublicKey()) {
		return nil, fmt.Errorf("%s is not the certificate of an authority", crtFile)
	}
	if a.cert.Expired(now) {
		return nil, fmt.Errorf("the Nebula authority %s is valid from %s to %s only", crtFile, a.cert.NotBefore(), a.cert.NotAfter())
	}
	return a, nil
}

// create writes the certificate first: a crash in between leaves no key, and the next start says which file is missing.
func create(crtFile, keyFile string, c CAConfig, now time.Time) error {
	t, err := c.template()
	if err != nil {
		return err
	}
	life, err := c.life()
	if err != nil {
		return err
	}
	t.NotBefore, t.NotAfter = now.Truncate(time.Second), now.Add(life).Truncate(time.Second)
	var key []byte
	if t.PublicKey, key, err = signingKey(t.Curve); err != nil {
		return err
	}
	signed, err := t.Sign(nil, t.Curve, key)
	if err != nil {
		return err
	}
	text, err := signed.MarshalPEM()
	if err != nil {
		return err
	}
	if err := atomicfile.WriteNew(crtFile, text, 0o644); err != nil {
		return err
	}
	return atomicfile.WriteNew(keyFile, cert.MarshalSigningPrivateKeyToPEM(t.Curve, key), 0o600)
}

func signingKey(curve cert.Curve) (public, private []byte, err error) {
	if curve == cert.Curve_CURVE25519 {
		return ed25519.GenerateKey(rand.Reader)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if public, err = key.PublicKey.Bytes(); err != nil {
		return nil, nil, err
	}
	private, err = key.Bytes()
	return public, private, err
}

// nodeKey makes the key pair of a node.
func nodeKey(curve cert.Curve) (public, private []byte, err error) {
	kind := ecdh.X25519()
	if curve == cert.Curve_P256 {
		kind = ecdh.P256()
	}
	key, err := kind.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	return key.PublicKey().Bytes(), key.Bytes(), nil
}
