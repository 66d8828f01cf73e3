package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/verifier/tpm"
)

func evidenceCmd(a *app) *cobra.Command {
	return group("evidence", "Verify saved evidence offline", evidenceVerifyCmd(a))
}

// verdict is the JSON answer of `evidence verify`.
type verdict struct {
	TEE    string         `json:"tee"`
	Valid  bool           `json:"valid"`
	Error  string         `json:"error,omitempty"`
	Nonce  string         `json:"nonce"`
	Key    string         `json:"key"`
	Claims map[string]any `json:"claims,omitempty"`
}

func evidenceVerifyCmd(a *app) *cobra.Command {
	var tee, nonce, initdataFile string
	var keys []string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify saved evidence without a broker; exit code 0 if it is genuine, 1 if not",
		Long: "Checks signature, registers, event log and, when given, nonce, initdata and the attestation key. Anybody can make a\n" +
			"key and sign with it: without --ak it is not known that a TPM was there at all. Genuine does not mean approved: which\n" +
			"values are acceptable is the broker's policy.",
		Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if tee != "tpm" {
				return usageError{fmt.Errorf("--tee %q: this version verifies tpm", tee)}
			}
			evidence, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the evidence: %w", err)
			}
			o := tpm.Options{Now: time.Now()}
			if o.ExpectedReportData, err = parseNonce(nonce); err != nil {
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
			if err == nil {
				err = checkKey(claims, keys)
			}
			v := verdict{TEE: tee, Valid: err == nil, Claims: claims, Nonce: "checked", Key: "checked"}
			if nonce == "" {
				v.Nonce = "not checked"
			}
			if len(keys) == 0 {
				v.Key = "not checked"
			}
			if err != nil {
				v.Error = err.Error()
			}
			if a.json {
				return errors.Join(a.printJSON(v), silent(err))
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "valid %s evidence, nonce %s, attestation key %s\n", tee, v.Nonce, v.Key)
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
	c.Flags().StringArrayVar(&keys, "ak", nil, "attestation key to accept, base64 as in the claim ak_public; without it a key made by anybody is accepted (repeatable)")
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

// checkKey refuses evidence that none of the known keys signed. An endorsement certificate cannot be used for this: what
// ties it to the attestation key is a challenge that only a session with a broker has.
func checkKey(claims map[string]any, keys []string) error {
	got, _ := claims["ak_public"].(string)
	if len(keys) == 0 || slices.Contains(keys, got) {
		return nil
	}
	return fmt.Errorf("the evidence is signed by the key %s, want one of the %d given by --ak", got, len(keys))
}

// parseNonce accepts hex or base64.
func parseNonce(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	if b, err := hex.DecodeString(text); err == nil {
		return b, nil
	}
	if b, err := base64.StdEncoding.DecodeString(text); err == nil {
		return b, nil
	}
	return nil, usageError{errors.New("--nonce is neither hex nor base64")}
}
