package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
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
	Claims map[string]any `json:"claims,omitempty"`
}

func evidenceVerifyCmd(a *app) *cobra.Command {
	var tee, nonce, initdataFile string
	var roots []string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify saved evidence without a broker; exit code 0 if it is genuine, 1 if not",
		Long: "Checks signature, registers, event log and, when given, nonce and initdata. Genuine does not mean approved: which\n" +
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
			if o.EKRoots, err = loadRoots(roots); err != nil {
				return err
			}
			claims, err := tpm.Verify(evidence, o)
			v := verdict{TEE: tee, Valid: err == nil, Claims: claims, Nonce: "checked"}
			if nonce == "" {
				v.Nonce = "not checked"
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
	c.Flags().StringArrayVar(&roots, "ek-root", nil, "PEM file with a TPM maker's root certificate (repeatable)")
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

func loadRoots(files []string) (*x509.CertPool, error) {
	return tpm.Config{EKRootFiles: files}.Roots()
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
