package tpm

import (
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cloister/cloister/tee/tpm"
	"github.com/cloister/cloister/wire/kbs"
)

// Config says which TPMs are known.
type Config struct {
	// EKRootFiles are PEM files of the certificates under which TPM makers certify endorsement keys.
	EKRootFiles []string
	// Now is the clock certificates are checked by; nil means time.Now.
	Now func() time.Time
}

// Roots reads the root files. No files give nil, which endorses nothing.
func (c Config) Roots() (*x509.CertPool, error) {
	if len(c.EKRootFiles) == 0 {
		return nil, nil
	}
	pool := x509.NewCertPool()
	for _, path := range c.EKRootFiles {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading endorsement roots: %w", err)
		}
		n, err := addPEM(pool, text)
		if err != nil {
			return nil, fmt.Errorf("reading endorsement roots %s: %w", path, err)
		}
		if n == 0 {
			return nil, fmt.Errorf("reading endorsement roots %s: it holds no certificate", path)
		}
	}
	return pool, nil
}

func addPEM(pool *x509.CertPool, text []byte) (int, error) {
	n := 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return n, nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return n, fmt.Errorf("certificate %d: %w", n+1, err)
		}
		pool.AddCert(cert)
		n++
	}
}

const (
	secretSize     = 32
	maxEnrol       = 4 << 10
	maxCertificate = 16 << 10
)

// Credential is a challenge to a TPM: a secret that only the TPM that holds the announced endorsement key can read, and
// only while it also holds the announced attestation key.
type Credential struct {
	secret []byte
	ak     crypto.PublicKey
	ek     crypto.PublicKey
	ekCert []byte
}

// NewCredential makes a challenge for announced keys. The attestation key must be one that can only sign what its TPM
// made itself, or its quotes would be worth nothing.
func NewCredential(e kbs.TPMEnrol) (*kbs.TPMCredential, *Credential, error) {
	if len(e.AKPublic) > maxEnrol || len(e.EKPublic) > maxEnrol || len(e.EKCertificate) > maxCertificate {
		return nil, nil, fmt.Errorf("announced keys have %d, %d and %d bytes, more than any TPM's",
			len(e.AKPublic), len(e.EKPublic), len(e.EKCertificate))
	}
	ak, err := tpm.ParsePublic(e.AKPublic)
	if err != nil {
		return nil, nil, fmt.Errorf("reading ak_public: %w", err)
	}
	if err := ak.CheckAttestationKey(); err != nil {
		return nil, nil, fmt.Errorf("ak_public: %w", err)
	}
	ek, err := tpm.ParsePublic(e.EKPublic)
	if err != nil {
		return nil, nil, fmt.Errorf("reading ek_public: %w", err)
	}
	secret := make([]byte, secretSize)
	if _, err := rand.Read(secret); err != nil {
		return nil, nil, fmt.Errorf("making a secret: %w", err)
	}
	blob, encrypted, err := tpm.MakeCredential(ek.Key, ak.Name(), secret)
	if err != nil {
		return nil, nil, fmt.Errorf("encrypting to ek_public: %w", err)
	}
	c := &Credential{secret: secret, ak: ak.Key, ek: ek.Key, ekCert: e.EKCertificate}
	return &kbs.TPMCredential{CredentialBlob: blob, EncryptedSecret: encrypted}, c, nil
}

// storedCredential is how a session keeps a Credential; the store seals it.
type storedCredential struct {
	Secret []byte `json:"secret"`
	AK     []byte `json:"ak"` // both PKIX
	EK     []byte `json:"ek"`
	EKCert []byte `json:"ek_cert,omitempty"`
}

// MarshalJSON encodes a credential with its secret, for the session that it belongs to.
func (c *Credential) MarshalJSON() ([]byte, error) {
	ak, err := x509.MarshalPKIXPublicKey(c.ak)
	if err != nil {
		return nil, fmt.Errorf("encoding the announced attestation key: %w", err)
	}
	ek, err := x509.MarshalPKIXPublicKey(c.ek)
	if err != nil {
		return nil, fmt.Errorf("encoding the announced endorsement key: %w", err)
	}
	return json.Marshal(storedCredential{c.secret, ak, ek, c.ekCert})
}

// UnmarshalJSON is the opposite of MarshalJSON.
func (c *Credential) UnmarshalJSON(raw []byte) error {
	var in storedCredential
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	if len(in.Secret) != secretSize {
		return fmt.Errorf("the secret has %d bytes, want %d", len(in.Secret), secretSize)
	}
	ak, err := x509.ParsePKIXPublicKey(in.AK)
	if err != nil {
		return fmt.Errorf("decoding the announced attestation key: %w", err)
	}
	ek, err := x509.ParsePKIXPublicKey(in.EK)
	if err != nil {
		return fmt.Errorf("decoding the announced endorsement key: %w", err)
	}
	*c = Credential{secret: in.Secret, ak: ak, ek: ek, ekCert: in.EKCert}
	return nil
}

type comparableKey interface {
	Equal(x crypto.PublicKey) bool
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(comparableKey)
	return ok && k.Equal(b)
}

// endorsement tells who vouches for the attestation key. A wrong answer to the challenge is an error; no answer, or an
// endorsement certificate nobody we know has signed, leaves the key unendorsed, with the reason.
func endorsement(ak crypto.PublicKey, answer string, o Options) (endorsed, why string, err error) {
	c := o.Credential
	switch {
	case c == nil:
		return EndorsedNot, "the guest announced no endorsement key", nil
	case !sameKey(ak, c.ak):
		return "", "", errors.New("ak_public is not the key that was announced at the challenge")
	case answer == "":
		return EndorsedNot, "the guest did not answer the credential challenge", nil
	}
	secret, err := decode("ak_credential", answer)
	if err != nil {
		return "", "", err
	}
	if subtle.ConstantTimeCompare(secret, c.secret) != 1 {
		return "", "", errors.New("ak_credential is not the secret of this session: the attestation key is not in the TPM of ek_public")
	}
	if err := checkEK(c, o); err != nil {
		return EndorsedNot, err.Error(), nil
	}
	return EndorsedByEK, "", nil
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// checkEK checks that the endorsement certificate is for the announced key and leads to a known maker. Such certificates
// have a critical subject alternative name with the TPM's model, a form that the standard library leaves to the caller.
func checkEK(c *Credential, o Options) error {
	if len(c.ekCert) == 0 {
		return errors.New("the TPM has no endorsement certificate")
	}
	cert, err := x509.ParseCertificate(c.ekCert)
	if err != nil {
		return fmt.Errorf("reading the endorsement certificate: %w", err)
	}
	if !sameKey(c.ek, cert.PublicKey) {
		return errors.New("the endorsement certificate is for another key")
	}
	if cert.IsCA {
		return errors.New("the endorsement certificate is that of an authority")
	}
	if !endorses(cert) {
		return errors.New("the endorsement certificate is for other uses, want tcg-kp-EKCertificate (2.23.133.8.1)")
	}
	if o.EKRoots == nil {
		return errors.New("the broker knows no TPM maker (tpm.ek_roots is empty)")
	}
	var unhandled []asn1.ObjectIdentifier
	for _, oid := range cert.UnhandledCriticalExtensions {
		if !oid.Equal(oidSubjectAltName) {
			unhandled = append(unhandled, oid)
		}
	}
	cert.UnhandledCriticalExtensions = unhandled
	_, err = cert.Verify(x509.VerifyOptions{
		Roots: o.EKRoots, CurrentTime: o.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("the endorsement certificate of %q does not lead to a known TPM maker: %w", cert.Issuer, err)
	}
	return nil
}

var oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}

// endorses reports whether a certificate is for an endorsement key. Some makers name no use at all.
func endorses(cert *x509.Certificate) bool {
	if len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.ContainsFunc(cert.UnknownExtKeyUsage, oidEKCertificate.Equal)
}
