package kms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/cloud/google"
)

// GCPConfig names a symmetric key of Google Cloud KMS.
type GCPConfig struct {
	// Key is projects/P/locations/L/keyRings/R/cryptoKeys/K.
	Key string `toml:"key"`
	google.Config
}

var gcpKey = regexp.MustCompile(`\Aprojects/[a-z0-9.:-]{1,63}/locations/[a-z0-9-]{1,63}/keyRings/[\w-]{1,63}/cryptoKeys/[\w-]{1,63}\z`)

// Validate reports every fault.
func (c GCPConfig) Validate() error {
	err := c.Config.Validate()
	if !gcpKey.MatchString(c.Key) {
		err = errors.Join(err, fmt.Errorf("key is %.256q, want projects/P/locations/L/keyRings/R/cryptoKeys/K", c.Key))
	}
	return err
}

type gcpKMS struct {
	key    string
	client *google.Client
}

func newGCP(c GCPConfig, now func() time.Time) (*gcpKMS, error) {
	client, err := google.New(c.Config, "https://cloudkms.googleapis.com", maxAnswer, now)
	if err != nil {
		return nil, err
	}
	return &gcpKMS{c.Key, client}, nil
}

func (w *gcpKMS) Name() string { return GCP + ":" + w.key }

func (w *gcpKMS) Wrap(ctx context.Context, plaintext, bound []byte) ([]byte, error) {
	var out struct {
		Name          string
		Ciphertext    []byte
		Checksum      string `json:"ciphertextCrc32c"`
		PlaintextOK   bool   `json:"verifiedPlaintextCrc32c"`
		AuthenticData bool   `json:"verifiedAdditionalAuthenticatedDataCrc32c"`
	}
	err := w.client.Call(ctx, http.MethodPost, "/v1/"+w.key+":encrypt", map[string]any{
		"plaintext": plaintext, "plaintextCrc32c": google.Checksum(plaintext),
		"additionalAuthenticatedData": bound, "additionalAuthenticatedDataCrc32c": google.Checksum(bound)}, &out)
	if err != nil {
		return nil, w.hint(err)
	}
	if !strings.HasPrefix(out.Name, w.key+"/cryptoKeyVersions/") {
		return nil, fmt.Errorf("the service encrypted with another key than %s", w.key)
	}
	if !out.PlaintextOK || !out.AuthenticData || out.Checksum != google.Checksum(out.Ciphertext) {
		return nil, errors.New("a checksum of Google Cloud KMS is wrong, something was damaged on the way")
	}
	return out.Ciphertext, nil
}

func (w *gcpKMS) Unwrap(ctx context.Context, wrapped, bound []byte) ([]byte, error) {
	var out struct {
		Plaintext []byte
		Checksum  string `json:"plaintextCrc32c"`
	}
	err := w.client.Call(ctx, http.MethodPost, "/v1/"+w.key+":decrypt", map[string]any{
		"ciphertext": wrapped, "ciphertextCrc32c": google.Checksum(wrapped),
		"additionalAuthenticatedData": bound, "additionalAuthenticatedDataCrc32c": google.Checksum(bound)}, &out)
	var refused *google.Error
	if errors.As(err, &refused) && refused.Code == "INVALID_ARGUMENT" {
		return nil, fmt.Errorf("%w: it was not wrapped with this key, or for brokers with another identity", err)
	}
	if err != nil {
		return nil, w.hint(err)
	}
	if out.Checksum != google.Checksum(out.Plaintext) {
		clear(out.Plaintext)
		return nil, errors.New("a checksum of Google Cloud KMS is wrong, something was damaged on the way")
	}
	return out.Plaintext, nil
}

func (w *gcpKMS) hint(err error) error {
	if google.Forbidden(err) {
		return fmt.Errorf("%w; hint: give the service account roles/cloudkms.cryptoKeyEncrypterDecrypter for the key", err)
	}
	return err
}
