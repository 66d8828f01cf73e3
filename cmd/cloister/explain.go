package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/decision"
)

// latest stands for the newest decision of the wanted kind.
const latest = "latest"

func explainCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "explain REQUEST-ID|latest",
		Short: "Why was it released or refused: each rule, the value got, the values accepted",
		Args:  exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.record(c.Context(), args[0], "")
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r)
			}
			a.printRecord(r)
			return nil
		},
	}
	a.broker.add(c)
	return c
}

func attestCmd(a *app) *cobra.Command {
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
			a.printRecord(r)
			return nil
		},
	}
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

func (a *app) printRecord(r *decision.Record) {
	rows := [][]string{{"request", r.ID}, {"time", r.Time.Local().Format("2006-01-02 15:04:05")}, {"decision", r.Decision}}
	add := func(name, value string) {
		if value != "" {
			rows = append(rows, []string{name, value})
		}
	}
	add("resource", r.Subject)
	add("tee", r.TEE)
	add("policy", r.Policy)
	add("reason", r.Reason)
	a.table(r.Kind+"|", rows)
	for _, f := range r.Findings {
		fmt.Fprintf(a.stdout, "  %s\n", f)
	}
	for _, p := range r.Parts {
		fmt.Fprintf(a.stdout, "\n%s (%s): %s by policy %s\n", p.Name, p.TEE, p.Status, p.Policy)
		var vector [][]string
		for _, name := range sortedKeys(p.Vector) {
			vector = append(vector, []string{"  " + name, fmt.Sprint(p.Vector[name]), meaning(name, p.Vector[name])})
		}
		a.table("", vector)
		for _, f := range p.Findings {
			fmt.Fprintf(a.stdout, "  failed: %s\n", f)
		}
		a.printClaims(p.TEE, p.Evidence)
	}
	if r.Attestation != nil {
		fmt.Fprintln(a.stdout, "\nit relied on this attestation:")
		a.printRecord(r.Attestation)
	}
}

// printClaims shows the claims a person compares: registers and identities, not the event log.
func (a *app) printClaims(tee string, evidence json.RawMessage) {
	var top map[string]json.RawMessage
	if json.Unmarshal(evidence, &top) != nil {
		return
	}
	var claims map[string]any
	if json.Unmarshal(top[tee], &claims) != nil {
		return
	}
	var rows [][]string
	for _, name := range sortedKeys(claims) {
		text, ok := claims[name].(string)
		if !ok || name == "ak_public" || strings.Trim(text, "0") == "" {
			continue
		}
		rows = append(rows, []string{"  " + name, text})
	}
	a.table("", rows)
}

// meaning puts an AR4SI trust claim into words (draft-ietf-rats-ar4si).
func meaning(claim string, value int) string {
	switch tier := value; {
	case tier >= 2 && tier < 32:
		return "affirming"
	case tier >= 32 && tier < 96:
		return "warning: " + claim + " is not what was expected"
	case tier >= 96:
		return "contraindicated: " + claim + " is not recognised"
	}
	return "no claim"
}
