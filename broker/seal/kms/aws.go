package kms

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/cloister/cloister/broker/cloud/amazon"
)

// AWSConfig names a symmetric key of AWS KMS.
type AWSConfig struct {
	// KeyARN is arn:aws:kms:REGION:ACCOUNT:key/ID. An alias can be turned to another key, so it is not taken.
	KeyARN string `toml:"key_arn"`
	amazon.Config
}

var keyARN = regexp.MustCompile(`\Aarn:aws[a-z-]*:kms:([a-z0-9-]+):[0-9]{12}:key/[A-Za-z0-9-]{1,128}\z`)

// Validate reports every fault.
func (c AWSConfig) Validate() error {
	errs := []error{c.Config.Validate()}
	if m := keyARN.FindStringSubmatch(c.KeyARN); m == nil {
		errs = append(errs, fmt.Errorf("key_arn is %.128q, want arn:aws:kms:REGION:ACCOUNT:key/ID", c.KeyARN))
	} else if m[1] != c.Region {
		errs = append(errs, fmt.Errorf("key_arn is of the region %s, region is %.32q", m[1], c.Region))
	}
	return errors.Join(errs...)
}

type awsKMS struct {
	arn    string
	client *amazon.Client
}

func newAWS(c AWSConfig, now func() time.Time) (*awsKMS, error) {
	client, err := amazon.New(c.Config, "kms", maxAnswer, now)
	if err != nil {
		return nil, err
	}
	return &awsKMS{c.KeyARN, client}, nil
}

func (w *awsKMS) Name() string { return AWS + ":" + w.arn }

// encryptionContext stands in the logs of AWS.
func encryptionContext(bound []byte) map[string]string {
	sum := sha256.Sum256(bound)
	return map[string]string{"cloister-broker": hex.EncodeToString(sum[:])}
}

func (w *awsKMS) Wrap(ctx context.Context, plaintext, bound []byte) ([]byte, error) {
	var out struct {
		CiphertextBlob []byte
		KeyID          string `json:"KeyId"`
	}
	err := w.client.Call(ctx, "TrentService.Encrypt", map[string]any{"KeyId": w.arn, "Plaintext": plaintext,
		"EncryptionContext": encryptionContext(bound)}, &out)
	if err != nil {
		return nil, w.hint(err, "kms:Encrypt")
	}
	if out.KeyID != w.arn {
		return nil, fmt.Errorf("AWS encrypted with another key than %s", w.arn)
	}
	return out.CiphertextBlob, nil
}

func (w *awsKMS) Unwrap(ctx context.Context, wrapped, bound []byte) ([]byte, error) {
	var out struct {
		Plaintext []byte
		KeyID     string `json:"KeyId"`
	}
	err := w.client.Call(ctx, "TrentService.Decrypt", map[string]any{"KeyId": w.arn, "CiphertextBlob": wrapped,
		"EncryptionContext": encryptionContext(bound)}, &out)
	if amazon.Is(err, "InvalidCiphertextException") {
		return nil, fmt.Errorf("%w: it was not wrapped with this key, or for brokers with another identity", err)
	}
	if err != nil {
		return nil, w.hint(err, "kms:Decrypt")
	}
	if out.KeyID != w.arn {
		clear(out.Plaintext)
		return nil, fmt.Errorf("AWS decrypted with another key than %s", w.arn)
	}
	return out.Plaintext, nil
}

func (w *awsKMS) hint(err error, action string) error {
	if amazon.Is(err, "AccessDeniedException") {
		return fmt.Errorf("%w; hint: allow %s for %s", err, action, w.arn)
	}
	return err
}
