package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/verifier/tpm"
)

func evidenceCmd(a *app) *cobra.Command {
	return group("evidence", "Verify saved evidence offline", evidenceVerifyCmd(a))
}

// verdict is the JSON answer of `evidence verify`. Valid says that the evidence fits together and fits what it was held
// against; Genuine says that a key known to belong to a TPM has signed it, and only that makes it worth anything.
type verdict struct {
	TEE     string         `json:"tee"`
	Valid   bool           `json:"valid"`
	Genuine bool           `json:"genuine"`
	Why     string         `json:"why,omitempty"` // it is not genuine
	Error   string         `json:"error,omitempty"`
	Nonce   string         `json:"nonce"`
	Key     string         `json:"key"`
	Claims  map[string]any `json:"claims,omitempty"`
}

// unknownKey is why evidence that fits together is not called genuine.
const unknownKey = "the evidence is self-consistent, but signed by an unknown key"

func evidenceVerifyCmd(a *app) *cobra.Command {
	var tee, nonce, initdataFile string
	var keys []string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify saved evidence without a broker; exit code 0 if it is genuine, 1 if not",
		Long: "Checks signature, registers, event log and, when given, nonce and initdata. Anybody can make a key and sign with it,\n" +
			"so evidence is genuine only if its key is one of those given by --ak: an endorsement certificate is tied to the key\n" +
			"by a challenge that only a session with a broker has. Genuine does not mean approved: which values are acceptable\n" +
			"is the broker's policy.",
		Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if tee != "tpm" {
				return usageError{fmt.Errorf("--tee %q: this version verifies tpm", tee)}
			}
			known, err := readKeys(keys)
			if err != nil {
				return err
			}
			evidence, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the evidence: %w", err)
			}
			o := tpm.Options{Now: time.Now()}
			var form string
			if o.ExpectedReportData, form, err = parseNonce(nonce); err != nil {
				return err
			}
			if initdataFile != "" {
				text, err := os.ReadFile(initdataFile)
				if err != nil {
					return fmt.Errorf("reading the initdata: %w", err)
				}
				sum := sha256.Sum256(text)
				o.InitDataDigest = sum[:]
			}
			claims, err := tpm.Verify(evidence, o)
			v := verdict{TEE: tee, Valid: err == nil, Claims: claims, Nonce: "checked, read as " + form, Key: "checked"}
			if nonce == "" {
				v.Nonce = "not checked"
			}
			if len(known) == 0 {
				v.Key = "not checked"
			}
			if err == nil {
				err = checkKey(claims, known)
			}
			v.Genuine = err == nil
			switch {
			case err != nil && v.Valid:
				v.Why = err.Error()
			case err != nil:
				v.Error = err.Error()
				if form != "" {
					err = hint(err, "--nonce was read as %s", form)
				}
			}
			if a.json {
				return errors.Join(a.printJSON(v), silent(err))
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "genuine %s evidence, nonce %s\n", tee, v.Nonce)
			var rows [][]string
			for _, name := range sortedKeys(claims) {
				if text, ok := claims[name].(string); ok {
					rows = append(rows, []string{name, text})
				}
			}
			a.table("CLAIM|VALUE", rows)
			return nil
		},
	}
	c.Flags().StringVar(&tee, "tee", "", "what made the evidence: tpm")
	c.Flags().StringVar(&nonce, "nonce", "", "report data the evidence must be for, hex or base64; without it a replay goes unnoticed")
	c.Flags().StringVar(&initdataFile, "initdata", "", "initdata document that PCR 8 must hold")
	c.Flags().StringArrayVar(&keys, "ak", nil, "file with an attestation key known to be a TPM's: a PEM public key, or base64 as in the claim ak_public (repeatable)")
	needs(c, "tee")
	return c
}

// silent turns an error that was already printed into an exit code.
func silent(err error) error {
	if err == nil {
		return nil
	}
	return exitError(exitRefused)
}

// checkKey refuses evidence that no known key has signed.
func checkKey(claims map[string]any, known []string) error {
	got, _ := claims["ak_public"].(string)
	if claims["ak_endorsement"] == tpm.EndorsedByEK || slices.Contains(known, got) {
		return nil
	}
	err := fmt.Errorf("%s: ak_public is %s, expected one of the %d given by --ak", unknownKey, got, len(known))
	return hint(err, "pin the key of a TPM you know with --ak FILE; `cloister attest --json` shows the ak_public that a broker has seen endorsed")
}

// readKeys reads attestation keys and returns them as the claim ak_public has them.
func readKeys(files []string) ([]string, error) {
	var keys []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading an attestation key: %w", err)
		}
		var der []byte
		if block, _ := pem.Decode(text); block != nil {
			der = block.Bytes
		} else if der, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(text))); err != nil {
			return nil, fmt.Errorf("attestation key %s is neither a PEM public key nor base64", file)
		}
		if _, err := x509.ParsePKIXPublicKey(der); err != nil {
			return nil, fmt.Errorf("attestation key %s: %w", file, err)
		}
		keys = append(keys, base64.StdEncoding.EncodeToString(der))
	}
	return keys, nil
}

// parseNonce accepts hex or base64. Much hex is base64 as well, so it also says how the text was read.
func parseNonce(text string) (nonce []byte, form string, err error) {
	if text == "" {
		return nil, "", nil
	}
	if b, err := hex.DecodeString(text); err == nil {
		return b, fmt.Sprintf("%d bytes of hex", len(b)), nil
	}
	if b, err := base64.StdEncoding.DecodeString(text); err == nil {
		return b, fmt.Sprintf("%d bytes of base64", len(b)), nil
	}
	return nil, "", usageError{errors.New("--nonce is neither hex nor base64")}
}
