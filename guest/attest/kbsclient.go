package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloister/cloister/wire/kbs"
)

// Key algorithms of KBSConfig.KeyAlg, as aa.toml names them.
const (
	KeyP256 = "ECDH-ES+A256KW-P256"
	KeyP521 = "ECDH-ES+A256KW-P521"
	KeyRSA  = "RSA-OAEP-256"
)

// KBSConfig says which broker to ask and how.
type KBSConfig struct {
	// URL of the broker. "https://" needs a certificate that RootPEM, or without
	// it the system's roots, can verify. "http://" must be written out; secrets
	// stay encrypted to this guest, but anybody on the way can refuse or replace
	// the broker.
	URL string
	// RootPEM holds the only certificates trusted for the connection.
	RootPEM string
	// KeyAlg is one of the Key constants; empty means KeyP256.
	KeyAlg string
	// InitData is the text of the initdata document, sent with the evidence.
	InitData string
	// Log gets warnings and progress, never secrets; nil discards them.
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// KBSClient attests to a broker and fetches resources from it. It is safe for
// concurrent use; concurrent callers share one handshake.
type KBSClient struct {
	base     *url.URL
	http     *http.Client
	attester Attester
	key      crypto.PrivateKey
	jwk      kbs.JWK
	initData string
	log      *slog.Logger
	now      func() time.Time
	backoff  time.Duration

	// shaking holds one token; the owner may do a handshake and use cached.
	shaking chan struct{}
	cached  cachedToken
}

// NewKBSClient checks the configuration and makes the key pair that resources
// will be encrypted to. It does not connect.
func NewKBSClient(cfg KBSConfig, a Attester) (*KBSClient, error) {
	if a == nil {
		return nil, errors.New("KBS client: no attester")
	}
	c := &KBSClient{
		attester: a, initData: cfg.InitData, log: cfg.Log, now: cfg.Now,
		backoff: 250 * time.Millisecond, shaking: make(chan struct{}, 1),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	if err := c.setURL(cfg.URL); err != nil {
		return nil, fmt.Errorf("KBS client: %w", err)
	}
	if err := c.setHTTP(cfg.RootPEM); err != nil {
		return nil, fmt.Errorf("KBS client: %w", err)
	}
	if err := c.makeKey(cfg.KeyAlg); err != nil {
		return nil, fmt.Errorf("KBS client: %w", err)
	}
	return c, nil
}

func (c *KBSClient) setURL(text string) error {
	u, err := url.Parse(strings.TrimRight(text, "/"))
	if err != nil {
		return fmt.Errorf("reading url: %w", err)
	}
	switch {
	case u.Host == "" || u.Hostname() == "":
		return fmt.Errorf("url %q has no host, expected https://host[:port]", text)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("url must not have a user, a query or a fragment")
	case u.Scheme == "http":
		c.log.Warn("insecure: the connection to the key broker is not encrypted", "url", u.String())
	case u.Scheme != "https":
		return fmt.Errorf("url has scheme %q, expected https or http", u.Scheme)
	}
	c.base = u
	return nil
}

func (c *KBSClient) setHTTP(rootPEM string) error {
	var roots *x509.CertPool // nil means the system's roots
	if strings.TrimSpace(rootPEM) != "" {
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(rootPEM)) {
			return errors.New("the root certificate is given and holds no certificate in PEM form")
		}
	}
	dialer := &net.Dialer{Timeout: 15 * time.Second}
	c.http = &http.Client{
		Jar: &cookies{},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the broker redirects, which the protocol does not know")
		},
		Timeout: requestTimeout,
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    15 * time.Second,
			ForceAttemptHTTP2:      true,
			MaxIdleConns:           2,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	return nil
}

func (c *KBSClient) makeKey(alg string) (err error) {
	switch alg {
	case "", KeyP256, KeyP521:
		curve := elliptic.P256()
		if alg == KeyP521 {
			curve = elliptic.P521()
		}
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			return fmt.Errorf("making the TEE key: %w", err)
		}
		c.key = key
		c.jwk, err = kbs.NewJWK(&key.PublicKey)
		return err
	case KeyRSA:
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return fmt.Errorf("making the TEE key: %w", err)
		}
		c.key = key
		c.jwk, err = kbs.NewJWK(&key.PublicKey)
		return err
	default:
		return fmt.Errorf("key algorithm is %q, expected %q, %q or %q", alg, KeyP256, KeyP521, KeyRSA)
	}
}

// lockHandshake waits until no other caller does a handshake.
func (c *KBSClient) lockHandshake(ctx context.Context) error {
	select {
	case c.shaking <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the attestation in progress: %w", ctx.Err())
	}
}

func (c *KBSClient) unlockHandshake() { <-c.shaking }
