package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cloister/cloister/broker/cloud"
)

// TransitConfig names a key of the transit engine of Vault or OpenBao. It has to be of an authenticated type, such as the
// usual aes256-gcm96.
type TransitConfig struct {
	// URL is https://HOST[:PORT].
	URL string `toml:"vault_url"`
	// TokenFile holds the token and is read for every request.
	TokenFile string `toml:"token_file"`
	// Mount is where the engine is mounted; default "transit".
	Mount     string `toml:"mount_path"`
	Key       string `toml:"key"`
	Namespace string `toml:"namespace"`
	cloud.Bounds
}

var (
	transitName  = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}\z`)
	transitMount = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*\z`)
	transitSpace = regexp.MustCompile(`\A[A-Za-z0-9_./-]{0,256}\z`)
	transitText  = regexp.MustCompile(`\A(vault|bao):v[0-9]+:[A-Za-z0-9+/=]+\z`)
)

func (c TransitConfig) withDefaults() TransitConfig {
	if c.Mount == "" {
		c.Mount = "transit"
	}
	return c
}

// Validate reports every fault.
func (c TransitConfig) Validate() error {
	c = c.withDefaults()
	errs := []error{c.Bounds.Validate(), cloud.CheckURL("vault_url", c.URL)}
	if !filepath.IsAbs(c.TokenFile) {
		errs = append(errs, errors.New("token_file: want an absolute path of a file that holds the token"))
	}
	if len(c.Mount) > 256 || !transitMount.MatchString(c.Mount) {
		errs = append(errs, fmt.Errorf("mount_path is %.64q, want names with '/' between them", c.Mount))
	}
	if !transitName.MatchString(c.Key) {
		errs = append(errs, fmt.Errorf("key is %.64q, want the name of a key", c.Key))
	}
	if !transitSpace.MatchString(c.Namespace) {
		errs = append(errs, fmt.Errorf("namespace is %.64q, want letters, digits and '_./-'", c.Namespace))
	}
	return errors.Join(errs...)
}

type transit struct {
	cfg  TransitConfig
	http *cloud.Client
}

func newTransit(c TransitConfig) (*transit, error) {
	h, err := cloud.New(c.Bounds, maxAnswer)
	if err != nil {
		return nil, err
	}
	return &transit{c.withDefaults(), h}, nil
}

func (w *transit) Name() string {
	return Transit + ":" + strings.Join([]string{strings.TrimSuffix(w.cfg.URL, "/"), w.cfg.Namespace, w.cfg.Mount, w.cfg.Key}, "|")
}

func (w *transit) Wrap(ctx context.Context, plaintext, bound []byte) ([]byte, error) {
	var out struct{ Data struct{ Ciphertext string } }
	if err := w.call(ctx, "encrypt", map[string]any{"plaintext": plaintext, "associated_data": bound}, &out); err != nil {
		return nil, err
	}
	if !transitText.MatchString(out.Data.Ciphertext) {
		return nil, errors.New("the answer of Vault to encrypt is not one of the transit engine")
	}
	return []byte(out.Data.Ciphertext), nil
}

func (w *transit) Unwrap(ctx context.Context, wrapped, bound []byte) ([]byte, error) {
	if !transitText.Match(wrapped) {
		return nil, errors.New("it is not what the transit engine wraps")
	}
	var out struct{ Data struct{ Plaintext []byte } }
	err := w.call(ctx, "decrypt", map[string]any{"ciphertext": string(wrapped), "associated_data": bound}, &out)
	return out.Data.Plaintext, err
}

func (w *transit) call(ctx context.Context, operation string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("asking Vault to %s: the request does not become JSON", operation)
	}
	path := "/v1/" + w.cfg.Mount + "/" + operation + "/" + w.cfg.Key
	a, err := w.http.Do(ctx, "Vault", func(ctx context.Context) (*http.Request, error) {
		token, err := cloud.ReadToken("token_file", w.cfg.TokenFile)
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(w.cfg.URL, "/")+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Vault-Token", token)
		req.Header.Set("X-Vault-Request", "true")
		req.Header.Set("Content-Type", "application/json")
		if w.cfg.Namespace != "" {
			req.Header.Set("X-Vault-Namespace", w.cfg.Namespace)
		}
		return req, nil
	}, nil)
	switch {
	case err != nil:
		return err
	case a.Status == http.StatusForbidden:
		return fmt.Errorf("asking Vault for %s: it answers 403; hint: the token in %s needs the capability update there", path, w.cfg.TokenFile)
	case a.Status == http.StatusBadRequest:
		return fmt.Errorf("asking Vault for %s: it answers 400: no such key, or it was not wrapped with it, or for brokers with another identity",
			path)
	case a.Status != http.StatusOK:
		return fmt.Errorf("asking Vault for %s: it answers %d, want 200", path, a.Status)
	}
	if json.Unmarshal(a.Body, out) != nil {
		return fmt.Errorf("the answer of Vault to %s is not the JSON of one", operation)
	}
	return nil
}
