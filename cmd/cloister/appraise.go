package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/catalog"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/dryrun"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/verifier"
)

type appraiseFlags struct {
	dryRun                 bool
	tee, nonce, initdata   string
	data, at               string
	bundles, policies      []string
	values, policyID       string
	full, noRevoke, anyTPM bool
}

func appraiseCmd(a *app) *cobra.Command {
	var f appraiseFlags
	c := &cobra.Command{
		Use:   "appraise --dry-run FILE|REQUEST-ID|latest",
		Short: "What would a policy say of saved evidence: each rule, the value got, the values accepted; nothing is written",
		Long: "FILE is evidence (JSON, as a guest sends it, with --tee), a record (`cloister attest --json`) or an attestation token; - is\n" +
			"standard input. Evidence is verified first, offline. Of records and tokens the claims are taken as they stand.\n" +
			"Policies are those that a new broker starts with, or --policy. Reference values are those of --values, or of the broker\n" +
			"that is named. With a REQUEST-ID or --policy-id, the broker makes the dry run, with its own policies.\n\n" +
			"Exit code 0: every part would be affirmed. 1: not. 2: it cannot be told, as the record lacks what the policy reads.",
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !f.dryRun {
				return hintError{usageError{errors.New("only the broker of a guest appraises for real")}, "`cloister appraise --dry-run " + args[0] + "` shows what would come out"}
			}
			result, err := a.appraise(c.Context(), args[0], f)
			if err != nil {
				return err
			}
			return a.printResult(result, f.full)
		},
	}
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "show what would come out; nothing is written anywhere")
	c.Flags().StringVar(&f.tee, "tee", "", "what made the evidence: tpm, snp, tdx, sgx, az-snp-vtpm, az-tdx-vtpm, csv, hygondcu, nvidia")
	c.Flags().StringVar(&f.nonce, "nonce", "", "report data that bare evidence must be for, hex or base64; without it a replay goes unnoticed")
	c.Flags().StringVar(&f.initdata, "initdata", "", "initdata document that bare evidence must be bound to")
	c.Flags().StringArrayVar(&f.policies, "policy", nil, "policy FILE for the first device's class, or CLASS=FILE (repeatable)")
	c.Flags().StringVar(&f.policyID, "policy-id", "", "a policy of the broker, such as default or default_gpu")
	c.Flags().StringVar(&f.values, "values", "", "reference values: a file of 'refvalue compute -o', or of 'refvalue list --json'")
	c.Flags().StringArrayVar(&f.bundles, "bundle", nil, "bundle of 'cloister collateral fetch' (repeatable)")
	c.Flags().StringVar(&f.data, "data", "", "data folder of a broker whose collateral may be used")
	c.Flags().StringVar(&f.at, "at", "", "time to verify at, as 2026-01-02T15:04:05Z (default: now)")
	c.Flags().BoolVar(&f.anyTPM, "insecure-unknown-tpm", false, "as if the broker had tpm.insecure_unknown_tpm on")
	c.Flags().BoolVar(&f.noRevoke, "insecure-no-revocation", false, "as if the broker had snp.insecure_no_revocation on")
	c.Flags().BoolVar(&f.full, "full", false, "do not shorten values")
	a.broker.add(c)
	return c
}

func (a *app) appraise(ctx context.Context, what string, f appraiseFlags) (*dryrun.Result, error) {
	at := time.Now()
	if f.at != "" {
		var err error
		if at, err = time.Parse(time.RFC3339, f.at); err != nil {
			return nil, usageError{fmt.Errorf("--at %q: want a time as 2026-01-02T15:04:05Z", f.at)}
		}
	}
	if what == latest {
		r, err := a.record(ctx, latest, "")
		if err != nil {
			return nil, err
		}
		what = r.ID
	}
	values, notes, err := a.trialValues(ctx, f, at)
	if err != nil {
		return nil, err
	}
	if decision.ValidID(what) || f.policyID != "" {
		return a.appraiseThere(ctx, what, f, values)
	}
	raw, err := a.readSaved(what)
	if err != nil {
		return nil, err
	}
	saved, err := dryrun.Read(raw)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	devices, err := a.devices(ctx, saved, f, at)
	if err != nil {
		return nil, err
	}
	trial := appraise.Trial{Values: values, Settings: map[string]any{
		"insecure_unknown_tpm": f.anyTPM, "insecure_no_revocation": f.noRevoke,
	}}
	if trial.Policy, err = readPolicies(f.policies, devices); err != nil {
		return nil, err
	}
	result, err := dryrun.Appraise(ctx, trial, devices)
	if err != nil {
		return nil, err
	}
	result.Notes = append(saved.Notes(devices), notes...)
	if saved.Form == dryrun.FormEvidence && f.nonce == "" {
		result.Notes = append(result.Notes, "the evidence was not held against a nonce: it may be a replay (--nonce)")
	}
	return result, nil
}

// trialValues are the reference values to appraise by, nil for those of whoever appraises.
func (a *app) trialValues(ctx context.Context, f appraiseFlags, at time.Time) (appraise.Values, []string, error) {
	if f.values != "" {
		raw, err := os.ReadFile(f.values)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the reference values: %w", err)
		}
		values, ended, err := dryrun.ReadValues(raw, at)
		if err != nil {
			return nil, nil, hint(fmt.Errorf("%s: %w", f.values, err), "make the file with `cloister refvalue compute -o FILE` or `cloister refvalue list --json`")
		}
		return values, endedNote(ended), nil
	}
	if f.policyID != "" || !a.broker.named() {
		return nil, []string{"no reference values were given: --values FILE, or name a broker"}, nil
	}
	broker, err := a.broker.client()
	if err != nil {
		return nil, nil, err
	}
	records, err := broker.ListReferenceValues(ctx)
	if err != nil {
		return nil, nil, err
	}
	values, ended := dryrun.Records(records, at)
	return values, endedNote(ended), nil
}

func endedNote(ended []string) []string {
	if len(ended) == 0 {
		return nil
	}
	return []string{"reference values that have ended count as absent: " + strings.Join(ended, ", ")}
}

// appraiseThere lets the broker make the dry run.
func (a *app) appraiseThere(ctx context.Context, what string, f appraiseFlags, values appraise.Values) (*dryrun.Result, error) {
	req := dryrun.Request{TEE: f.tee, PolicyID: f.policyID}
	if f.values != "" {
		req.Values = values
	}
	if len(f.policies) > 1 {
		return nil, usageError{errors.New("the broker takes one --policy")}
	}
	if len(f.policies) == 1 {
		class, file, ok := strings.Cut(f.policies[0], "=")
		if !ok {
			class, file = "", f.policies[0]
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading the policy: %w", err)
		}
		req.Policy = string(text)
		if class != "" && req.PolicyID == "" {
			req.PolicyID = appraise.DefaultPolicy + "_" + class
		}
	}
	if decision.ValidID(what) {
		req.RecordID = what
	} else {
		raw, err := a.readSaved(what)
		if err != nil {
			return nil, err
		}
		if req.Evidence = json.RawMessage(raw); !json.Valid(raw) { // a bare token
			if req.Evidence, err = json.Marshal(map[string]string{"token": strings.TrimSpace(string(raw))}); err != nil {
				return nil, fmt.Errorf("encoding the token: %w", err)
			}
		}
	}
	broker, err := a.broker.client()
	if err != nil {
		return nil, err
	}
	return broker.DryRun(ctx, req)
}

// devices are the claims of something saved; evidence is verified for them.
func (a *app) devices(ctx context.Context, saved *dryrun.Saved, f appraiseFlags, at time.Time) ([]dryrun.Device, error) {
	switch saved.Form {
	case dryrun.FormRecord, dryrun.FormToken:
		return saved.Claims()
	case dryrun.FormRefusal:
		return nil, hint(errors.New("a refusal is nothing to appraise"), "`cloister explain` explains it")
	}
	if f.tee == "" {
		return nil, hintError{usageError{errors.New("evidence does not say what made it")}, "give --tee tpm, snp, tdx, ..."}
	}
	b := dryrun.Binding{TEE: f.tee}
	var err error
	if b.ReportData, err = parseNonce(f.nonce); err != nil {
		return nil, err
	}
	if f.initdata != "" {
		if b.InitData, err = os.ReadFile(f.initdata); err != nil {
			return nil, fmt.Errorf("reading the initdata: %w", err)
		}
	}
	cfg := collateral.DefaultConfig()
	cfg.OfflineOnly, cfg.Bundles = true, f.bundles
	if f.data != "" {
		cfg.CacheDir = filepath.Join(f.data, "collateral")
	}
	sources, err := catalog.Open(cfg, nil)
	if err != nil {
		return nil, err
	}
	defer sources.Close()
	set, err := verifier.NewSet(verifier.Builtin(verifier.Config{
		Now: func() time.Time { return at }, AMD: sources.AMD, Intel: sources.Intel, NVIDIA: sources.NVIDIA, Unbound: true,
	}))
	if err != nil {
		return nil, err
	}
	if _, err := set.Get(verifier.Canonical(f.tee)); err != nil {
		return nil, usageError{fmt.Errorf("--tee %q: %w", f.tee, err)}
	}
	devices, err := saved.Verify(ctx, set, b)
	if err != nil {
		return nil, fmt.Errorf("the evidence is not genuine, or not bound as it must be: %w", err)
	}
	return devices, nil
}

// readPolicies finds the policy of a class among files, and else the one that a new broker starts with.
func readPolicies(files []string, devices []dryrun.Device) (func(context.Context, string) (*rego.Policy, error), error) {
	byClass := map[string]*rego.Policy{}
	for _, file := range files {
		class := devices[0].Class
		if c, rest, ok := strings.Cut(file, "="); ok && slices.Contains(appraise.Classes(), c) {
			class, file = c, rest
		}
		if byClass[class] != nil {
			return nil, usageError{fmt.Errorf("there are two policies for devices of class %s", class)}
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading the policy: %w", err)
		}
		if byClass[class], err = rego.Compile(filepath.Base(file), string(text)); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context, class string) (*rego.Policy, error) {
		if p := byClass[class]; p != nil {
			return p, nil
		}
		return appraise.BuiltIn(ctx, class)
	}, nil
}

// exitUnknown is the exit code of a dry run that cannot tell.
const exitUnknown = 2

func (a *app) printResult(r *dryrun.Result, full bool) error {
	var err error
	switch {
	case r.CannotTell != "":
		err = exitError(exitUnknown)
	case !r.Affirming():
		err = exitError(exitRefused)
	}
	if a.json {
		return errors.Join(a.printJSON(r), err)
	}
	p := page{w: a.stdout, full: full}
	switch {
	case r.CannotTell != "":
		fmt.Fprintf(a.stdout, "CANNOT TELL: %s\n", printable(r.CannotTell))
	case err == nil:
		fmt.Fprintln(a.stdout, "WOULD BE APPROVED: every part is affirming")
	default:
		fmt.Fprintf(a.stdout, "WOULD NOT BE APPROVED: the evidence is %s\n", r.Status)
	}
	for _, part := range r.Parts {
		p.part(part.Part)
		rows := [][]string{{"  ", "FOR", "CLAIM", "GOT", "ACCEPTED"}}
		for _, c := range part.Checks {
			rows = append(rows, p.check(c))
		}
		if len(rows) > 1 {
			fmt.Fprintln(a.stdout)
			p.rows(rows)
		}
		for _, advice := range adviseAll(part.Name, part.Findings, nil, time.Now()) {
			p.advice(advice)
		}
	}
	for i, n := range r.Notes {
		if i == 0 {
			fmt.Fprintln(a.stdout)
		}
		fmt.Fprintf(a.stdout, "note: %s\n", printable(n))
	}
	return err
}
