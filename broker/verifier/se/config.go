package se

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cloister/cloister/tee/se"
)

// Config says where the material of challenges is. A path may be a file or a folder of files; files are PEM or DER.
type Config struct {
	// MeasurementKeyFile is an RSA private key (PEM): the broker's own, shared by its replicas.
	MeasurementKeyFile string
	// HostKeyDocuments are those of the machines that guests may run on.
	HostKeyDocuments string
	// Certificates are those of the IBM signing key and of the intermediates.
	Certificates string
	// RootCA is the authority trusted.
	RootCA string
	// CRLs are the revocation lists of every issuer.
	CRLs string
	// AllowMissingCACRLs accepts that there are lists for host keys only.
	AllowMissingCACRLs bool
	// ImageHeader is the header of the image that guests run, or the image.
	ImageHeader string
}

// Verifier makes challenges and verifies the answers.
type Verifier struct {
	key       *rsa.PrivateKey
	trust     HostKeyTrust
	documents []*x509.Certificate
	tags      se.Tags
}

// New reads the files.
func New(c Config) (*Verifier, error) {
	v := &Verifier{trust: HostKeyTrust{AllowMissingCACRLs: c.AllowMissingCACRLs}}
	text, err := os.ReadFile(c.MeasurementKeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading the SE measurement key: %w", err)
	}
	if v.key, err = ParseMeasurementKey(text); err != nil {
		return nil, fmt.Errorf("reading the SE measurement key %s: %w", c.MeasurementKeyFile, err)
	}
	for _, f := range []struct {
		path string
		to   *[]*x509.Certificate
	}{{c.HostKeyDocuments, &v.documents}, {c.Certificates, &v.trust.Certificates}, {c.RootCA, &v.trust.Roots}} {
		if *f.to, err = load(f.path, "CERTIFICATE", x509.ParseCertificate); err != nil {
			return nil, err
		}
	}
	if v.trust.CRLs, err = load(c.CRLs, "X509 CRL", x509.ParseRevocationList); err != nil {
		return nil, err
	}
	header, err := os.ReadFile(c.ImageHeader)
	if err != nil {
		return nil, fmt.Errorf("reading the SE image header: %w", err)
	}
	if v.tags, err = se.ParseImageHeader(header); err != nil {
		return nil, fmt.Errorf("reading the SE image header %s: %w", c.ImageHeader, err)
	}
	return v, nil
}

// Challenge makes the JSON to send to a guest. The parameters of the guest's request are not needed. One host-key document
// that fails makes no challenge: which machine it is for would be a guess.
func (v *Verifier) Challenge(_ context.Context, _ json.RawMessage, now time.Time) (json.RawMessage, error) {
	trust := v.trust
	trust.Now = now
	var keys []*ecdsa.PublicKey
	for _, d := range v.documents {
		key, err := trust.Verify(d)
		if err != nil {
			return nil, fmt.Errorf("host key with serial number %x: %w", d.SerialNumber, err)
		}
		keys = append(keys, key)
	}
	c, err := Challenge(ChallengeOptions{HostKeys: keys, Tags: v.tags, MeasurementKey: v.key, Now: now})
	if err != nil {
		return nil, err
	}
	return json.Marshal(c)
}

// Verify is the function Verify with the key of the configuration.
func (v *Verifier) Verify(ctx context.Context, evidence json.RawMessage, o Options) (map[string]any, error) {
	o.MeasurementKey = v.key
	return Verify(ctx, evidence, o)
}

// ParseMeasurementKey reads an RSA private key of at least 2048 bits, PKCS #1 or PKCS #8 in PEM.
func ParseMeasurementKey(text []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("it is not PEM")
	}
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		other, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		var ok bool
		if key, ok = other.(*rsa.PrivateKey); !ok {
			return nil, fmt.Errorf("a key of type %T, expected RSA", other)
		}
	}
	if n := key.N.BitLen(); n < 2048 {
		return nil, fmt.Errorf("an RSA key of %d bits, expected at least 2048", n)
	}
	return key, nil
}

// load reads every object of a file, or of every file of a folder.
func load[T any](path, kind string, parse func([]byte) (T, error)) ([]T, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading SE certificates: %w", err)
	}
	files := []string{path}
	if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "*")); err != nil {
			return nil, fmt.Errorf("reading SE certificates: %w", err)
		}
	}
	var out []T
	for _, name := range files {
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("reading SE certificates: %w", err)
		}
		objects, err := parseAll(b, kind, parse)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		out = append(out, objects...)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("reading %s: no %s there", path, kind)
	}
	return out, nil
}

// parseAll reads the PEM blocks of one kind, or DER.
func parseAll[T any](b []byte, kind string, parse func([]byte) (T, error)) ([]T, error) {
	block, rest := pem.Decode(b)
	if block == nil {
		object, err := parse(b)
		if err != nil {
			return nil, err
		}
		return []T{object}, nil
	}
	var out []T
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type != kind {
			continue
		}
		object, err := parse(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, object)
	}
	return out, nil
}
