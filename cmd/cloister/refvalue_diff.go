package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/refstore"
)

// valueDiff is what registering a file would do.
type valueDiff struct {
	Added   []refstore.Change `json:"added"`
	Removed []refstore.Change `json:"removed"`
	// Changed are values that are replaced or get another expiry.
	Changed []refstore.Change `json:"changed"`
	// Expires are values of the broker that end soon and that the file does not renew.
	Expires []refstore.Change `json:"expires"`
}

func refvalueDiffCmd(a *app) *cobra.Command {
	var f addFlags
	var soon time.Duration
	c := &cobra.Command{
		Use: "diff FILE", Short: "Show what registering FILE would add, end or renew at the broker, without doing it", Args: exactly(1),
		Long: "The file and the flags are those of `refvalue add`: without --replace nothing ends. New expiries are not shown: the\n" +
			"broker's configuration decides about them.",
		RunE: func(c *cobra.Command, args []string) error {
			if soon < 0 {
				return usageError{errors.New("--expires-within is negative, want 0 or more")}
			}
			values, err := readValueFile(args[0])
			if err != nil {
				return err
			}
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			records, err := client.ListReferenceValues(c.Context())
			if err != nil {
				return err
			}
			d, err := diffValues(c.Context(), records, values, f, time.Now(), soon)
			if err != nil {
				return fmt.Errorf("comparing %s with the broker: %w", args[0], err)
			}
			if a.json {
				return a.printJSON(d)
			}
			a.printValueDiff(d)
			return nil
		},
	}
	c.Flags().StringVar(&f.group, "group", "", "the label that the values would get")
	c.Flags().BoolVar(&f.replace, "replace", false, "as with 'refvalue add --replace': other values of the names (with --group: of that group) would end")
	c.Flags().DurationVar(&soon, "expires-within", 30*24*time.Hour, "also show what ends within this time and is not renewed")
	a.broker.add(c)
	return c
}

func diffValues(ctx context.Context, records []refstore.Record, values map[string]any, f addFlags, now time.Time, soon time.Duration) (*valueDiff, error) {
	payload, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	m := refstore.Message{Type: "sample", Payload: base64.StdEncoding.EncodeToString(payload), Group: f.group, Mode: refstore.ModeAdd}
	if f.replace {
		m.Mode = refstore.ModeReplace
	}
	message, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	d := &valueDiff{}
	if d.Added, d.Removed, d.Changed, err = refstore.Compare(ctx, records, message, now); err != nil {
		return nil, err
	}
	touched := map[string]bool{}
	for _, list := range [][]refstore.Change{d.Removed, d.Changed} {
		for _, c := range list {
			touched[c.Name+"\x00"+string(c.Value)] = true
		}
	}
	for _, r := range records {
		for _, e := range r.Elements {
			until := e.Expiration()
			if now.Before(until) && !until.After(now.Add(soon)) && !touched[r.Name+"\x00"+string(e.Value)] {
				d.Expires = append(d.Expires, refstore.Change{Name: r.Name, Value: e.Value, Expiration: until})
			}
		}
	}
	return d, nil
}

func (a *app) printValueDiff(d *valueDiff) {
	var rows [][]string
	add := func(sign string, list []refstore.Change, note func(refstore.Change) string) {
		for _, c := range list {
			rows = append(rows, []string{sign, c.Name, shortValue(c.Value, false), note(c)})
		}
	}
	day := func(t time.Time) string { return t.Local().Format("2006-01-02") }
	add("+", d.Added, func(refstore.Change) string { return "would be accepted" })
	add("-", d.Removed, func(c refstore.Change) string { return "would end, now good until " + day(c.Expiration) })
	add("~", d.Changed, func(c refstore.Change) string {
		if c.Was != nil {
			return "would take the place of " + shortValue(c.Was, false)
		}
		return "would be renewed, now good until " + day(c.WasExpiration)
	})
	add("!", d.Expires, func(c refstore.Change) string { return "ends on " + day(c.Expiration) + " and is not renewed by this" })
	if rows == nil {
		fmt.Fprintln(a.stdout, "no difference")
		return
	}
	a.table("", rows)
}
