package nvidia

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloister/cloister/tee/nvgpu"
)

// NVIDIA's Remote Attestation Service. Whoever uses it needs NVIDIA's consent to its terms.
const (
	DefaultNRASURL = "https://nras.attestation.nvidia.com/v4/attest"
	DefaultJWKSURL = "https://nras.attestation.nvidia.com/.well-known/jwks.json"
	nrasIssuer     = "https://nras.attestation.nvidia.com"

	attestTimeout = 60 * time.Second
	jwksTimeout   = 30 * time.Second
	maxReply      = 1 << 20
)

// Doer sends requests; *http.Client is one.
type Doer interface {
	Do(*http.Request) (*http.Response, error)
}

// RemoteConfig says where NRAS is.
type RemoteConfig struct {
	// URL is that of the service; DefaultNRASURL when empty. It may be a proxy: its answers are signed.
	URL string
	// JWKSURL is where the service's keys are; DefaultJWKSURL when empty. It is trusted and must be https, except on this
	// machine.
	JWKSURL string
	// HTTP sends the requests; nil means a client of its own.
	HTTP Doer
}

// Remote asks NRAS. It is safe for concurrent use.
type Remote struct {
	url  string
	http Doer
	keys *keySet
}

// NewRemote makes a client. It sends nothing yet.
func NewRemote(c RemoteConfig) (*Remote, error) {
	if c.URL == "" {
		c.URL = DefaultNRASURL
	}
	if c.JWKSURL == "" {
		c.JWKSURL = DefaultJWKSURL
	}
	if _, err := url.ParseRequestURI(c.URL); err != nil {
		return nil, fmt.Errorf("address of NRAS: %w", err)
	}
	if err := checkTrusted(c.JWKSURL); err != nil {
		return nil, fmt.Errorf("address of the keys of NRAS: %w", err)
	}
	if c.HTTP == nil {
		c.HTTP = &http.Client{Timeout: attestTimeout}
	}
	return &Remote{url: strings.TrimRight(c.URL, "/"), http: c.HTTP, keys: &keySet{url: c.JWKSURL, http: c.HTTP}}, nil
}

func checkTrusted(address string) error {
	u, err := url.ParseRequestURI(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme != "https" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%s is not https", address)
	}
	return nil
}

// attest sends one device and returns the claims of its token.
func (r *Remote) attest(ctx context.Context, d device, nonce [nvgpu.NonceSize]byte, now time.Time) (map[string]any, error) {
	type item struct {
		Evidence    string `json:"evidence"`
		Certificate string `json:"certificate"`
	}
	body, err := json.Marshal(struct {
		Nonce         string `json:"nonce"`
		Arch          string `json:"arch"`
		EvidenceList  []item `json:"evidence_list"`
		ClaimsVersion string `json:"claims_version"`
	}{
		hex.EncodeToString(nonce[:]), d.arch.service,
		[]item{{base64.StdEncoding.EncodeToString(d.data), base64.StdEncoding.EncodeToString(d.chain)}}, "3.0",
	})
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, attestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"/"+d.arch.class, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	reply, err := send(r.http, req)
	if err != nil {
		return nil, fmt.Errorf("asking NRAS: %w", err)
	}
	claims, err := r.readReply(ctx, reply, d, nonce, now)
	if err != nil {
		return nil, fmt.Errorf("answer of NRAS: %w", err)
	}
	return claims, nil
}

func send(client Doer, req *http.Request) ([]byte, error) {
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxReply+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading from %s: %w", req.URL, err)
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s answered %s: %.200q", req.URL, res.Status, body)
	case len(body) > maxReply:
		return nil, fmt.Errorf("%s answered with more than %d bytes", req.URL, maxReply)
	}
	return body, nil
}

// reply is what NRAS sends: [["JWT", overall], {"GPU-0": token of the device}].
type reply struct {
	overall, name, device string
}

func parseReply(text []byte) (reply, error) {
	var parts []json.RawMessage
	var first []string
	var devices map[string]string
	if err := json.Unmarshal(text, &parts); err != nil {
		return reply{}, fmt.Errorf("reading it: %w", err)
	}
	if len(parts) != 2 {
		return reply{}, fmt.Errorf("it has %d parts, want 2", len(parts))
	}
	if err := errors.Join(json.Unmarshal(parts[0], &first), json.Unmarshal(parts[1], &devices)); err != nil {
		return reply{}, fmt.Errorf("reading it: %w", err)
	}
	if len(first) != 2 || first[0] != "JWT" {
		return reply{}, errors.New(`its first part is not ["JWT", token]`)
	}
	if len(devices) != 1 {
		return reply{}, fmt.Errorf("it is about %d devices, want 1", len(devices))
	}
	r := reply{overall: first[1]}
	for r.name, r.device = range devices {
	}
	return r, nil
}

func (r *Remote) readReply(ctx context.Context, text []byte, d device, nonce [nvgpu.NonceSize]byte, now time.Time) (map[string]any, error) {
	answer, err := parseReply(text)
	if err != nil {
		return nil, err
	}
	want := hex.EncodeToString(nonce[:])
	overall, err := r.keys.verify(ctx, answer.overall, want, now)
	if err != nil {
		return nil, fmt.Errorf("overall token: %w", err)
	}
	claims, err := r.keys.verify(ctx, answer.device, want, now)
	if err != nil {
		return nil, fmt.Errorf("token of %.32q: %w", answer.name, err)
	}
	if err := checkDigest(overall, answer); err != nil {
		return nil, err
	}
	// Upstream copies what is there; a result that is not there stays away, which no policy takes for a yes.
	if v, ok := overall[claimOverall]; ok {
		claims[claimOverall] = v
	}
	name := "x-nvidia-" + d.arch.class + "-attestation-report-nonce-match"
	if match, ok := claims[name].(bool); !ok || !match {
		return nil, fmt.Errorf("%s is %v, want true", name, claims[name])
	}
	return claims, nil
}

const claimOverall = "x-nvidia-overall-att-result"
