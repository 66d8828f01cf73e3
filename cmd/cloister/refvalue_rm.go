package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/refstore"
)

func refvalueRemoveCmd(a *app) *cobra.Command {
	var group string
	c := &cobra.Command{
		Use: "rm NAME [VALUE] | rm --group GROUP", Short: "Remove a reference value, one of those it lists, or a group of them",
		Long: "Guests that need what is removed are refused at their next attestation; one that is attested keeps its token until that ends.",
		Args: func(c *cobra.Command, args []string) error {
			if group != "" {
				return cobra.NoArgs(c, args)
			}
			if len(args) == 2 {
				return nil
			}
			return exactly(1)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			if group != "" {
				names, err := client.DeleteReferenceGroup(c.Context(), group)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string]any{"group": group, "names": names})
				}
				fmt.Fprintf(a.stdout, "group %s: removed from %s\n", group, strings.Join(names, ", "))
				return nil
			}
			left := []string{}
			if len(args) == 2 {
				if left, err = withoutValue(c.Context(), client, args[0], args[1]); err != nil {
					return err
				}
			}
			if len(left) > 0 {
				err = client.KeepReferenceValues(c.Context(), map[string]any{args[0]: left})
			} else {
				err = client.DeleteReferenceValue(c.Context(), args[0])
			}
			if err != nil {
				return err
			}
			switch {
			case a.json:
				return a.printJSON(map[string]any{"name": args[0], "accepted": left})
			case len(left) > 0:
				fmt.Fprintf(a.stdout, "%s: %d accepted\n", args[0], len(left))
			default:
				fmt.Fprintf(a.stdout, "%s: removed\n", args[0])
			}
			return nil
		},
	}
	c.Flags().StringVar(&group, "group", "", "remove what was added with this label")
	a.broker.add(c)
	return c
}

// withoutValue is what a reference value lists besides one value. That may be cut short as `refvalue list` shows it, when no other
// begins like it. Approvals that have ended are left alone: registering the rest would make it good for another lifetime.
func withoutValue(ctx context.Context, c *client.Client, name, value string) ([]string, error) {
	records, err := c.ListReferenceValues(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(records, func(r refstore.Record) bool { return r.Name == name })
	if i < 0 {
		return nil, hint(fmt.Errorf("there is no reference value %q", name), "`cloister refvalue list` shows them")
	}
	if r := records[i]; !time.Now().Before(r.Expiration) {
		return nil, hint(fmt.Errorf("the approval of %s ended on %s", name, r.Expiration.Format("2006-01-02")), "`cloister refvalue rm %s` removes all of it", name)
	}
	var have []string
	if err := json.Unmarshal(records[i].Value, &have); err != nil {
		return nil, fmt.Errorf("reference value %s is not a list of strings: %w", name, err)
	}
	prefix, short := strings.CutSuffix(value, "..")
	gone := func(v string) bool { return v == value || short && strings.HasPrefix(v, prefix) }
	left := slices.DeleteFunc(slices.Clone(have), gone)
	if n := len(have) - len(left); n != 1 {
		return nil, hint(fmt.Errorf("%d of the %d values of %s are %q, expected one", n, len(have), name, value), "`cloister refvalue list --json` shows them in full")
	}
	return left, nil
}
