package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/refstore"
)

func refvalueListCmd(a *app) *cobra.Command {
	var group string
	var expired, full bool
	c := &cobra.Command{
		Use: "list", Short: "List the reference values of the broker: who approved them, when, until when", Args: cobra.NoArgs,
		Long: "One line is one approval: a value that two groups registered is accepted until the later of them ends. SIGNED BY is\n" +
			"whose signature the broker checked; what an administrator registered by hand is unsigned.",
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			records, err := client.ListReferenceValues(c.Context())
			if err != nil {
				return err
			}
			now := time.Now()
			shown, hidden := choose(records, group, c.Flags().Changed("group"), expired, now)
			if a.json {
				return a.printJSON(shown)
			}
			var rows [][]string
			for _, r := range shown {
				rows = append(rows, approvals(r, now, full)...)
			}
			a.table("NAME|VALUE|GROUP|UNTIL|BY|SINCE|SIGNED BY|FROM", rows)
			if hidden > 0 {
				fmt.Fprintf(a.stderr, "hint: %d more have ended and count as absent: --expired\n", hidden)
			}
			return nil
		},
	}
	c.Flags().StringVar(&group, "group", "", "only what this group registered; \"\" for what belongs to none")
	c.Flags().BoolVar(&expired, "expired", false, "only what has ended")
	c.Flags().BoolVar(&full, "full", false, "do not shorten values")
	a.broker.add(c)
	return c
}

// choose leaves of records what is asked for, and counts what has ended and was not.
func choose(records []refstore.Record, group string, byGroup, expired bool, now time.Time) (shown []refstore.Record, hidden int) {
	shown = []refstore.Record{}
	for _, r := range records {
		if byGroup {
			if r = ofGroup(r, group); len(r.Elements) == 0 {
				continue
			}
		}
		if ended := !now.Before(r.Expiration); ended == expired {
			shown = append(shown, r)
		} else if ended {
			hidden++
		}
	}
	return shown, hidden
}

// ofGroup leaves of a record what a group approved; the value is left as it is when it is no list.
func ofGroup(r refstore.Record, group string) refstore.Record {
	var elements []refstore.Element
	var values []json.RawMessage
	r.Expiration = time.Time{}
	for _, e := range r.Elements {
		for _, ap := range e.Approvals {
			if ap.Group != group {
				continue
			}
			elements = append(elements, refstore.Element{Value: e.Value, Approvals: []refstore.Approval{ap}})
			values = append(values, e.Value)
			if ap.Expiration.After(r.Expiration) {
				r.Expiration = ap.Expiration
			}
		}
	}
	r.Elements = elements
	if r.List() {
		if raw, err := json.Marshal(values); err == nil && values != nil {
			r.Value = raw
		}
	}
	return r
}

// approvals are the lines of a record. A name and a value are not said again below themselves.
func approvals(r refstore.Record, now time.Time, full bool) [][]string {
	day := func(t time.Time) string { return t.Local().Format("2006-01-02") }
	if len(r.Elements) == 0 { // of an older broker, or an empty list
		return [][]string{{r.Name, shortValue(r.Value, full), "", day(r.Expiration), r.By, day(r.Registered), r.Signer, r.Source}}
	}
	var rows [][]string
	name := r.Name
	for _, e := range r.Elements {
		value := shortValue(e.Value, full)
		for _, ap := range e.Approvals {
			until := day(ap.Expiration)
			if !now.Before(ap.Expiration) {
				until += " ended"
			}
			rows = append(rows, []string{name, value, ap.Group, until, ap.By, day(ap.Registered), ap.Signer, ap.Source})
			name, value = "", ""
		}
	}
	return rows
}

// shownDigits is how much of a value a listing shows.
const shownDigits = 16

// shortValue is a value as listings show it: a text without quotes, cut short.
func shortValue(raw json.RawMessage, full bool) string {
	text := string(raw)
	var s string
	if json.Unmarshal(raw, &s) == nil {
		text = printable(s)
	}
	if !full && len(text) > shownDigits {
		text = text[:shownDigits] + ".."
	}
	return text
}

// valueStrings shortens what is registered for a listing.
func valueStrings(raw json.RawMessage) []string {
	list := []json.RawMessage{raw}
	if len(raw) > 0 && raw[0] == '[' && json.Unmarshal(raw, &list) != nil {
		list = []json.RawMessage{raw}
	}
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = shortValue(v, false)
	}
	return out
}
