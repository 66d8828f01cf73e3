package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/dryrun"
	"github.com/cloister/cloister/broker/refstore"
)

// latest stands for the newest decision of the wanted kind.
const latest = "latest"

// explanation is a record with what to do about it.
type explanation struct {
	*decision.Record
	Advice []advice     `json:"advice"`
	Groups []groupMatch `json:"nearest_groups,omitempty"`
	Notes  []string     `json:"notes,omitempty"`
}

func explainCmd(a *app) *cobra.Command {
	var full bool
	c := &cobra.Command{
		Use:   "explain REQUEST-ID|FILE|latest",
		Short: "Why was it released or refused: each rule, the value got, the values accepted, what to do",
		Long: "REQUEST-ID is what every refusal names. FILE is something saved: a record (`cloister attest --json`, `cloister explain\n" +
			"--json`), an attestation token, the broker's refusal, or the error text that a pod ended with; - is standard input.\n" +
			"A record or a refusal of the guest's own policy needs no broker. When one is named, its reference values tell whether a\n" +
			"value was approved once, and which group a guest resembles; findings of a token are made with them.",
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error { return a.explain(c.Context(), args[0], full) },
	}
	c.Flags().BoolVar(&full, "full", false, "do not shorten values")
	a.broker.add(c)
	return c
}

func (a *app) explain(ctx context.Context, what string, full bool) error {
	if what == latest || decision.ValidID(what) {
		r, err := a.record(ctx, what, "")
		if err != nil {
			return err
		}
		return a.printExplanation(ctx, r, nil, full)
	}
	raw, err := a.readSaved(what)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return hint(err, "want a request id (32 hex digits), %s, or a file", latest)
		}
		return err
	}
	saved, err := dryrun.Read(raw)
	if err != nil || saved.Form == dryrun.FormRefusal || saved.Form == dryrun.FormEvidence {
		return a.explainRefusal(ctx, what, string(raw), saved, full)
	}
	switch saved.Form {
	case dryrun.FormRecord:
		return a.printExplanation(ctx, saved.Record, nil, full)
	case dryrun.FormToken:
		r, notes, err := a.ofToken(ctx, saved)
		if err != nil {
			return err
		}
		return a.printExplanation(ctx, r, notes, full)
	}
	return hint(fmt.Errorf("%s holds evidence, about which nothing was decided yet", what), "`cloister appraise --dry-run %s` decides about it", what)
}

// readSaved reads a file, or standard input for "-".
func (a *app) readSaved(file string) ([]byte, error) {
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("reading what was saved: %w", err)
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, dryrun.MaxSaved+1))
	if err != nil {
		return nil, fmt.Errorf("reading what was saved: %w", err)
	}
	if len(raw) > dryrun.MaxSaved {
		return nil, fmt.Errorf("%s has more than %d bytes, which no record or token has", file, dryrun.MaxSaved)
	}
	return raw, nil
}

// values are the reference values of the broker, nil when none was named or it does not tell.
func (a *app) values(ctx context.Context) []refstore.Record {
	if !a.broker.named() {
		return nil
	}
	c, err := a.broker.client()
	if err != nil {
		return nil
	}
	records, err := c.ListReferenceValues(ctx)
	if err != nil {
		return nil // the explanation is good without
	}
	return records
}

// explained collects the advice on a record and on the attestation it relied on.
func explained(r *decision.Record, records []refstore.Record, notes []string, now time.Time) *explanation {
	x := &explanation{Record: r, Advice: []advice{}, Notes: notes}
	var evidence []json.RawMessage
	for _, one := range []*decision.Record{r, r.Attestation} {
		if one == nil {
			continue
		}
		for _, p := range one.Parts {
			evidence = append(evidence, p.Evidence)
			x.Advice = append(x.Advice, adviseAll(p.Name, p.Findings, records, now)...)
		}
	}
	if len(x.Advice) > 0 {
		x.Groups = nearestGroups(records, evidence)
	}
	if r.AttestationID != "" && r.Attestation == nil {
		x.Notes = append(x.Notes, "the record of attestation "+r.AttestationID+" is gone: records are a bounded history")
	}
	return x
}

func (a *app) printExplanation(ctx context.Context, r *decision.Record, notes []string, full bool) error {
	x := explained(r, a.values(ctx), notes, time.Now())
	if a.json {
		return a.printJSON(x)
	}
	p := page{w: a.stdout, full: full}
	p.explanation(x)
	return nil
}

func attestCmd(a *app) *cobra.Command {
	var full bool
	c := &cobra.Command{
		Use:   "attest [REQUEST-ID|latest]",
		Short: "Print the result of an attestation: what the guest proved, and how it was judged",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id := latest
			if len(args) == 1 {
				id = args[0]
			}
			r, err := a.record(c.Context(), id, decision.KindAttestation)
			if err != nil {
				return err
			}
			if r.Kind != decision.KindAttestation && r.Attestation != nil {
				r = r.Attestation
			}
			if a.json {
				return a.printJSON(r)
			}
			p := page{w: a.stdout, full: full}
			p.explanation(explained(r, a.values(c.Context()), nil, time.Now()))
			for _, part := range r.Parts {
				fmt.Fprintf(a.stdout, "\nclaims of %s\n", part.Name)
				p.claims(part.TEE, part.Evidence)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&full, "full", false, "do not shorten values")
	a.broker.add(c)
	return c
}

// record fetches a decision; `latest` is the newest one in the audit log, of the given kind if any.
func (a *app) record(ctx context.Context, id, kind string) (*decision.Record, error) {
	client, err := a.broker.client()
	if err != nil {
		return nil, err
	}
	if id != latest {
		return client.Explain(ctx, id)
	}
	entries, err := a.auditSince(ctx, 0)
	if err != nil {
		return nil, err
	}
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		if e.RequestID == "" || e.TEE == "" && e.Attestation == "" {
			continue
		}
		r, err := client.Explain(ctx, e.RequestID)
		if err != nil || kind != "" && r.Kind != kind {
			continue
		}
		return r, nil
	}
	return nil, hint(errors.New("the broker has no decision to explain yet"), "`cloister broker audit` lists what it has decided")
}
