package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"strings"
	"time"

	"github.com/cloister/cloister/wire/kbs"
)

const (
	benchKey      = "default/key/1"
	maxWireAnswer = 1 << 20
	wireTimeout   = 2 * time.Minute
)

// wireGuests makes guests that speak the protocol and nothing more: evidence of the TEE "sample" costs them nothing, so that the
// broker is what is measured. Each has a key, a connection and a session of its own, as pods have.
type wireGuests struct {
	url   string
	roots *x509.CertPool
}

func newWireGuests(url, certificate string) (*wireGuests, error) {
	g := &wireGuests{url: strings.TrimRight(url, "/")}
	if certificate == "" {
		return g, nil
	}
	text, err := os.ReadFile(certificate)
	if err != nil {
		return nil, err
	}
	g.roots = x509.NewCertPool()
	if !g.roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", certificate)
	}
	return g, nil
}

// one is the life of one guest: challenge, attestation, one key.
func (g *wireGuests) one(ctx context.Context) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: g.roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	w := wireGuest{g.url, &http.Client{Jar: jar, Transport: transport, Timeout: wireTimeout}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	jwk, err := kbs.NewJWK(&key.PublicKey)
	if err != nil {
		return err
	}
	params, err := json.Marshal(kbs.RequestParams{SupportedHashAlgorithms: []string{"sha256", "sha384", "sha512"}})
	if err != nil {
		return err
	}
	var challenge kbs.Challenge
	if err := w.post(ctx, "/auth", kbs.Request{Version: kbs.Version, TEE: "sample", ExtraParams: params}, &challenge); err != nil {
		return err
	}
	attestation, err := sampleAttestation(challenge, jwk)
	if err != nil {
		return err
	}
	var token kbs.TokenResponse
	if err := w.post(ctx, "/attest", attestation, &token); err != nil {
		return err
	}
	sealed, err := w.call(ctx, http.MethodGet, "/resource/"+benchKey, nil)
	if err != nil {
		return err
	}
	secret, err := kbs.Decrypt(sealed, key)
	if err != nil {
		return err
	}
	if len(secret) != 32 {
		return fmt.Errorf("the key has %d bytes, expected 32", len(secret))
	}
	return nil
}

func sampleAttestation(c kbs.Challenge, jwk kbs.JWK) (*kbs.Attestation, error) {
	params, err := c.Params()
	if err != nil {
		return nil, err
	}
	a := &kbs.Attestation{RuntimeData: kbs.RuntimeData{Nonce: c.Nonce, TEEPubKey: jwk}}
	reportData, err := kbs.ReportData(a.RuntimeData, &a.TEEEvidence.Additional, params.HashAlgorithm())
	if err != nil {
		return nil, err
	}
	a.TEEEvidence.Primary, err = json.Marshal(map[string]string{"svn": "1", "report_data": base64.StdEncoding.EncodeToString(reportData)})
	return a, err
}

// wireGuest is the connection of one guest.
type wireGuest struct {
	url  string
	http *http.Client
}

func (w wireGuest) post(ctx context.Context, path string, message, into any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	answer, err := w.call(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("reading the answer of %s: %w", path, err)
	}
	return nil
}

func (w wireGuest) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, w.url+kbs.PathPrefix+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := w.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxWireAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", path, err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d: %.300s", path, res.StatusCode, answer)
	}
	return answer, nil
}
