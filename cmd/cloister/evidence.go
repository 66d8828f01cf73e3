package main

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/catalog"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/broker/verifier/tpm"
	"github.com/cloister/cloister/wire/initdata"
)

func evidenceCmd(a *app) *cobra.Command {
	return group("evidence", "Verify saved evidence offline", evidenceVerifyCmd(a))
}

// verdict is the JSON answer of `evidence verify`. Valid says that the evidence fits together and fits what it was held against.
// Genuine says in addition that whoever signed it is known: the maker of the hardware, or a TPM's key given by --ak.
type verdict struct {
	TEE     string         `json:"tee"`
	Valid   bool           `json:"valid"`
	Genuine bool           `json:"genuine"`
	Why     string         `json:"why,omitempty"` // it is not genuine
	Error   string         `json:"error,omitempty"`
	Nonce   string         `json:"nonce"`
	Claims  map[string]any `json:"claims,omitempty"`
	// Devices are the claims of each device, for evidence of more than one.
	Devices []device `json:"devices,omitempty"`
}

type device struct {
	Class  string         `json:"class"`
	Claims map[string]any `json:"claims"`
}

// unknownKey is why evidence that fits together is not called genuine.
const unknownKey = "signed by a key that anybody can have made"

type evidenceFlags struct {
	tee, nonce, initdata, data, at string
	keys, bundles                  []string
}

func evidenceVerifyCmd(a *app) *cobra.Command {
	var f evidenceFlags
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify saved evidence without a broker; exit code 0 if it holds, 1 if not",
		Long: "Checks signatures, certificates, event log and, when given, nonce and initdata. For a TPM this says that one key signed\n" +
			"it all; anybody can make such a key, so the answer calls the evidence genuine only if the key is one of those given\n" +
			"by --ak, and fails if keys are given and it is none of them. Valid or genuine does not mean approved: which values\n" +
			"are acceptable is the broker's policy. Nothing is fetched: certificates, revocation lists and TCB levels come with\n" +
			"the evidence or from --bundle and --data, and the claims say what was not to be had.",
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error { return a.verifyEvidence(c.Context(), args[0], f) },
	}
	c.Flags().StringVar(&f.tee, "tee", "", "what made the evidence: tpm, snp, tdx, sgx, az-snp-vtpm, az-tdx-vtpm, csv, hygondcu, nvidia")
	c.Flags().StringVar(&f.nonce, "nonce", "", "report data the evidence must be for, hex or base64; without it a replay goes unnoticed")
	c.Flags().StringVar(&f.initdata, "initdata", "", "initdata document that the evidence must be bound to")
	c.Flags().StringArrayVar(&f.keys, "ak", nil, "file with an attestation key known to be a TPM's: a PEM public key, or base64 as in the claim ak_public (repeatable)")
	c.Flags().StringArrayVar(&f.bundles, "bundle", nil, "bundle of `cloister collateral fetch` (repeatable)")
	c.Flags().StringVar(&f.data, "data", "", "data folder of a broker whose collateral may be used")
	c.Flags().StringVar(&f.at, "at", "", "time to verify at, as 2026-01-02T15:04:05Z (default: now)")
	needs(c, "tee")
	return c
}

func (a *app) verifyEvidence(ctx context.Context, file string, f evidenceFlags) error {
	known, err := readKeys(f.keys)
	if err != nil {
		return err
	}
	if len(known) > 0 && f.tee != "tpm" {
		return usageError{fmt.Errorf("--ak is for --tee tpm, not %s", f.tee)}
	}
	v, done, err := offlineVerifier(f)
	if err != nil {
		return err
	}
	defer done()
	evidence, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading the evidence: %w", err)
	}
	req := verifier.Request{Evidence: evidence}
	var form string
	if req.ReportData, form, err = parseNonce(f.nonce); err != nil {
		return err
	}
	if f.initdata != "" {
		text, err := os.ReadFile(f.initdata)
		if err != nil {
			return fmt.Errorf("reading the initdata: %w", err)
		}
		if _, req.InitData, err = initdata.Digest(text); err != nil {
			return fmt.Errorf("reading the initdata %s: %w", f.initdata, err)
		}
	}
	results, err := v.Verify(ctx, req)
	answer := verdict{TEE: f.tee, Valid: err == nil, Genuine: err == nil, Nonce: "checked, read as " + form}
	if f.nonce == "" {
		answer.Nonce = "not checked"
	}
	if err != nil {
		answer.Error = err.Error()
		if form != "" {
			err = hint(err, "--nonce was read as %s", form)
		}
	}
	if len(results) == 1 {
		answer.Claims = results[0].Claims
	}
	for _, r := range results {
		if len(results) > 1 {
			answer.Devices = append(answer.Devices, device{r.Class, r.Claims})
		}
	}
	if err == nil && f.tee == "tpm" {
		if unknown := checkKey(answer.Claims, known); unknown != nil {
			answer.Genuine, answer.Why = false, unknown.Error()
			if len(known) > 0 {
				err = unknown
			}
		}
	}
	if a.json {
		return errors.Join(a.printJSON(answer), silent(err))
	}
	if err != nil {
		return err
	}
	a.printVerdict(answer, results)
	return nil
}

func (a *app) printVerdict(v verdict, results []verifier.Result) {
	if v.Genuine {
		fmt.Fprintf(a.stdout, "genuine %s evidence, nonce %s\n", v.TEE, v.Nonce)
	} else {
		fmt.Fprintf(a.stdout, "valid %s evidence, nonce %s, but %s\n", v.TEE, v.Nonce, v.Why)
		fmt.Fprintln(a.stderr, "hint: pin the key of a TPM you know with --ak FILE; `cloister attest --json` shows the ak_public that a broker has seen endorsed")
	}
	for _, r := range results {
		if len(results) > 1 {
			fmt.Fprintf(a.stdout, "\n%s\n", r.Class)
		}
		var rows [][]string
		for _, name := range sortedKeys(r.Claims) {
			switch c := r.Claims[name].(type) {
			case string:
				rows = append(rows, []string{name, c})
			case bool, int, int64, uint8, uint16, uint32, uint64:
				rows = append(rows, []string{name, fmt.Sprint(c)})
			}
		}
		a.table("CLAIM|VALUE", rows)
	}
}

// offlineVerifier is the verifier of a TEE for saved evidence, which asks no server.
func offlineVerifier(f evidenceFlags) (verifier.Verifier, func(), error) {
	at := time.Now()
	if f.at != "" {
		var err error
		if at, err = time.Parse(time.RFC3339, f.at); err != nil {
			return nil, nil, usageError{fmt.Errorf("--at %q: want a time as 2026-01-02T15:04:05Z", f.at)}
		}
	}
	cfg := collateral.DefaultConfig()
	cfg.OfflineOnly, cfg.Bundles = true, f.bundles
	if f.data != "" {
		cfg.CacheDir = filepath.Join(f.data, "collateral")
	}
	sources, err := catalog.Open(cfg, nil)
	if err != nil {
		return nil, nil, err
	}
	set, err := verifier.NewSet(verifier.Builtin(verifier.Config{
		Now: func() time.Time { return at }, AMD: sources.AMD, Intel: sources.Intel, NVIDIA: sources.NVIDIA, Unbound: true,
	}))
	if err != nil {
		sources.Close()
		return nil, nil, err
	}
	v, err := set.Get(verifier.Canonical(f.tee))
	if err != nil {
		sources.Close()
		return nil, nil, usageError{fmt.Errorf("--tee %q: %w", f.tee, err)}
	}
	return v, sources.Close, nil
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
	if len(known) > 0 {
		return fmt.Errorf("%s: ak_public is %s, want one of the %d given by --ak", unknownKey, got, len(known))
	}
	return errors.New(unknownKey)
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
