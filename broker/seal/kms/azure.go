package kms

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/cloud/microsoft"
)

// AzureConfig names an RSA key of a Key Vault or a managed HSM.
type AzureConfig struct {
	Key string `toml:"key"`
	microsoft.Config
}

var (
	azureKey     = regexp.MustCompile(`\A[A-Za-z0-9-]{1,127}\z`)
	azureVersion = regexp.MustCompile(`\A[0-9a-fA-F]{32}\z`)
)

// Validate reports every fault.
func (c AzureConfig) Validate() error {
	err := c.Config.Validate()
	if !azureKey.MatchString(c.Key) {
		err = errors.Join(err, fmt.Errorf("key is %.128q, want the name of a key", c.Key))
	}
	return err
}

// azureKeyVault wraps with RSA-OAEP-256. Everybody who has the public half can do that, so the vault signs what it
// wrapped, together with the context, with the same key (PS256), and that is verified before anything is unwrapped.
type azureKeyVault struct {
	key, vault string
	client     *microsoft.Client
}

func newAzure(c AzureConfig, now func() time.Time) (*azureKeyVault, error) {
	client, err := microsoft.New(c.Config, maxAnswer, now)
	if err != nil {
		return nil, err
	}
	return &azureKeyVault{strings.ToLower(c.Key), strings.ToLower(strings.TrimSuffix(c.VaultURL, "/")), client}, nil
}

func (w *azureKeyVault) Name() string { return Azure + ":" + w.vault + "/keys/" + w.key }

// azureWrapped is what is kept.
type azureWrapped struct {
	Version   string `json:"version"`
	Value     []byte `json:"value"`
	Signature []byte `json:"signature"`
}

// digest is what is signed: lengths keep context and value apart.
func (a azureWrapped) digest(bound []byte) []byte {
	h := sha256.New()
	h.Write([]byte("cloister wrapped by azure 1\x00"))
	for _, part := range [][]byte{[]byte(a.Version), bound, a.Value} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write(part)
	}
	return h.Sum(nil)
}

func (w *azureKeyVault) Wrap(ctx context.Context, plaintext, bound []byte) ([]byte, error) {
	var key struct {
		Key struct {
			ID   string `json:"kid"`
			Type string `json:"kty"`
		} `json:"key"`
	}
	if err := w.client.Call(ctx, http.MethodGet, "/keys/"+w.key, nil, nil, &key); err != nil {
		return nil, w.hint(err)
	}
	if key.Key.Type != "RSA" && key.Key.Type != "RSA-HSM" {
		return nil, fmt.Errorf("the key %s is of the type %.16q, want RSA", w.key, key.Key.Type)
	}
	u, err := url.Parse(key.Key.ID)
	if err != nil {
		return nil, errors.New("the vault sent a key without an id")
	}
	version, ok := strings.CutPrefix(strings.ToLower(u.Path), "/keys/"+w.key+"/")
	if !ok || !azureVersion.MatchString(version) {
		return nil, fmt.Errorf("the vault sent another key than %s", w.key)
	}
	a := azureWrapped{Version: version}
	if a.Value, err = w.operate(ctx, version, "wrapkey", "RSA-OAEP-256", plaintext); err != nil {
		return nil, err
	}
	if a.Signature, err = w.operate(ctx, version, "sign", "PS256", a.digest(bound)); err != nil {
		return nil, err
	}
	return json.Marshal(a)
}

func (w *azureKeyVault) Unwrap(ctx context.Context, wrapped, bound []byte) ([]byte, error) {
	var a azureWrapped
	if json.Unmarshal(wrapped, &a) != nil || !azureVersion.MatchString(a.Version) || len(a.Value) == 0 || len(a.Signature) == 0 {
		return nil, errors.New("it is not what this service wraps")
	}
	in := map[string]string{"alg": "PS256", "digest": encode(a.digest(bound)), "value": encode(a.Signature)}
	var verified struct {
		Value bool `json:"value"`
	}
	if err := w.client.Call(ctx, http.MethodPost, w.path(a.Version, "verify"), nil, in, &verified); err != nil {
		return nil, w.hint(err)
	}
	if !verified.Value {
		return nil, errors.New("it was not wrapped with this key, or for brokers with another identity: its signature is wrong")
	}
	return w.operate(ctx, a.Version, "unwrapkey", "RSA-OAEP-256", a.Value)
}

func (w *azureKeyVault) path(version, operation string) string {
	return "/keys/" + w.key + "/" + version + "/" + operation
}

// operate lets the vault do something with a version of the key.
func (w *azureKeyVault) operate(ctx context.Context, version, operation, alg string, value []byte) ([]byte, error) {
	var out struct {
		ID    string `json:"kid"`
		Value string `json:"value"`
	}
	err := w.client.Call(ctx, http.MethodPost, w.path(version, operation), nil, map[string]string{"alg": alg, "value": encode(value)}, &out)
	if err != nil {
		return nil, w.hint(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(out.Value, "="))
	if err != nil || len(raw) == 0 {
		return nil, fmt.Errorf("the answer of Azure Key Vault to %s is not base64", operation)
	}
	return raw, nil
}

func (w *azureKeyVault) hint(err error) error {
	if microsoft.Forbidden(err) {
		return fmt.Errorf("%w; hint: give the identity the role Key Vault Crypto User for the key %s", err, w.key)
	}
	return err
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
