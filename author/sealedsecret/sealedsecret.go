// Package sealedsecret makes sealed secrets: texts that stand for a secret of the broker and may be seen by anybody. In a variable or a
// file of a pod the guest puts the broker's secret in their place. A signature keeps the host from naming another secret there.
//
// The form is that of the Confidential Containers' data hub: "sealed." and a JWS in compact form (RFC 7515, ES256) over a JSON payload of
// type "vault". The broker has the signer's public key as a JWK (RFC 7517), in the resource that the header names.
package sealedsecret

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ErrCurve means that a key is not on the one curve that guests know, P-256.
var ErrCurve = errors.New("the key is not of the curve P-256")

var encode = base64.RawURLEncoding.EncodeToString

// Seal makes a sealed secret of a resource (kbs:///repository/type/tag). signer is the resource with the public key of key.
func Seal(key *ecdsa.PrivateKey, signer, resource string) (string, error) {
	for what, uri := range map[string]string{"signer": signer, "secret": resource} {
		if err := CheckURI(uri); err != nil {
			return "", fmt.Errorf("sealing a secret: the %s: %w", what, err)
		}
	}
	if key.Curve != elliptic.P256() {
		return "", fmt.Errorf("sealing a secret: %w", ErrCurve)
	}
	header, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Kid string `json:"kid"`
	}{"ES256", signer})
	if err != nil {
		return "", fmt.Errorf("sealing a secret: %w", err)
	}
	payload, err := json.Marshal(struct { // guests want every member
		Version     string   `json:"version"`
		Type        string   `json:"type"`
		Name        string   `json:"name"`
		Provider    string   `json:"provider"`
		Settings    struct{} `json:"provider_settings"`
		Annotations struct{} `json:"annotations"`
	}{Version: "0.1.0", Type: "vault", Name: resource, Provider: "kbs"})
	if err != nil {
		return "", fmt.Errorf("sealing a secret: %w", err)
	}
	signed := encode(header) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return "", fmt.Errorf("sealing a secret: %w", err)
	}
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	return "sealed." + signed + "." + encode(signature), nil
}

// JWK is a public key in the form that guests want from the broker.
func JWK(key *ecdsa.PublicKey) ([]byte, error) {
	if key.Curve != elliptic.P256() {
		return nil, ErrCurve
	}
	point, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding a public key: %w", err)
	}
	return json.Marshal(struct {
		Kty string `json:"kty"`
		Crv string `json:"crv"`
		Alg string `json:"alg"`
		Use string `json:"use"`
		X   string `json:"x"`
		Y   string `json:"y"`
	}{"EC", "P-256", "ES256", "sig", encode(point[1:33]), encode(point[33:])})
}

// CheckURI says whether a text names a resource of the broker that a guest can ask for.
func CheckURI(uri string) error {
	path, ok := strings.CutPrefix(uri, "kbs:///")
	parts := strings.Split(path, "/")
	if !ok || len(parts) != 3 {
		return fmt.Errorf("%q: want kbs:///repository/type/tag", uri)
	}
	for _, p := range parts {
		if p == "" || p == "." || p == ".." || strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
			return fmt.Errorf("%q: want kbs:///repository/type/tag of letters, digits, '-', '_' and '.'", uri)
		}
	}
	return nil
}
