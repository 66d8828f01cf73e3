package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/refvalue"
	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/wire/guestimage"
)

func refvalueCmd(a *app) *cobra.Command {
	return group("refvalue", "Compute and register the measurements to expect", refvalueComputeCmd(a), refvalueAddCmd(a), refvalueListCmd(a), refvalueRemoveCmd(a))
}

func refvalueComputeCmd(a *app) *cobra.Command {
	var (
		pf           podFlags
		image        string
		initdataFile string
		kernelAppend string
		events       bool
		out          string
	)
	c := &cobra.Command{
		Use:   "compute POD.yaml",
		Short: "Compute the PCR values that a boot of this pod must show, from the artefacts",
		Long: "Computes, from firmware, kernel, initrd, command line, machine size and initdata, the PCR values of a boot of exactly\n" +
			"these. Nothing is booted and nothing is typed in. The pod is read for the size of its machine.",
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			plan, err := pf.plan(c.Context(), a, args[0])
			if err != nil {
				return err
			}
			dir, err := imageDir(image)
			if err != nil {
				return err
			}
			m, err := guestimage.Load(dir)
			if err != nil {
				return err
			}
			if err := m.Verify(dir); err != nil {
				return err
			}
			document, err := os.ReadFile(initdataFile)
			if err != nil {
				return fmt.Errorf("reading the initdata: %w", err)
			}
			in := refvalue.Input{
				Kernel: filepath.Join(dir, m.Kernel.Path), Initrd: filepath.Join(dir, m.Initrd.Path), Cmdline: m.Cmdline,
				FirmwareCode: m.Firmware.CodePath, FirmwareVars: m.Firmware.VarsPath, Initdata: document,
				Machines: []refvalue.Machine{{VCPUs: plan.Resources.VCPUs, MemoryMiB: plan.Resources.MemoryMiB}},
			}
			if kernelAppend != "" {
				in.Cmdline += " " + kernelAppend
			}
			r, err := refvalue.Compute(in)
			if err != nil {
				return err
			}
			if out != "" {
				text, err := json.MarshalIndent(r.Values, "", "  ")
				if err != nil {
					return fmt.Errorf("encoding the values: %w", err)
				}
				if err := a.write(out, append(text, '\n')); err != nil {
					return err
				}
			}
			if a.json {
				return a.printJSON(r)
			}
			a.printValues(r.Values)
			if events {
				a.printBoots(r.Boots)
			}
			return nil
		},
	}
	pf.add(c)
	addOutput(c, &out)
	c.Flags().StringVar(&image, "guest", "", "folder of the guest image (default: the one built last)")
	c.Flags().StringVar(&initdataFile, "initdata", "", "initdata document of the pod")
	c.Flags().StringVar(&kernelAppend, "kernel-append", "", "what `cloister run` will add to the kernel command line")
	c.Flags().BoolVar(&events, "events", false, "explain every event that goes into the registers")
	needs(c, "initdata")
	return c
}

func (a *app) printValues(values map[string][]string) {
	var rows [][]string
	for _, name := range sortedKeys(values) {
		for i, v := range values[name] {
			label := name
			if i > 0 {
				label = ""
			}
			rows = append(rows, []string{label, v})
		}
	}
	a.table("reference value|accepted", rows)
}

func (a *app) printBoots(boots []refvalue.Boot) {
	for _, b := range boots {
		fmt.Fprintf(a.stdout, "\n%s, %s\n", b.Machine, b.Loader)
		var rows [][]string
		for _, e := range b.Events {
			rows = append(rows, []string{fmt.Sprintf("PCR %d", e.PCR), e.Type, e.Digest, e.What})
		}
		a.table("", rows)
	}
}

func refvalueAddCmd(a *app) *cobra.Command {
	var group string
	c := &cobra.Command{
		Use: "add FILE", Short: "Register values at the broker, beside the ones it has", Args: exactly(1),
		Long: "The file is a JSON object of names and values: one of `cloister refvalue compute -o`, or one of your own for another\n" +
			"platform. A list is a set of values that are all accepted. What is there stays, with its own expiry.",
		RunE: func(c *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the values: %w", err)
			}
			var values map[string]any
			dec := json.NewDecoder(bytes.NewReader(text))
			dec.UseNumber()
			if err := dec.Decode(&values); err != nil {
				return hint(fmt.Errorf("reading the values in %s: %w", args[0], err), "make the file with `cloister refvalue compute -o FILE`")
			}
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			if err := client.AddReferenceValues(c.Context(), group, values); err != nil {
				return err
			}
			records, err := client.ListReferenceValues(c.Context())
			if err != nil {
				return err
			}
			for _, r := range records {
				if _, ok := values[r.Name]; ok {
					fmt.Fprintf(a.stdout, "%s: %d accepted\n", r.Name, len(valueStrings(r.Value)))
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&group, "group", "", "label the values, by their pod for example, so that `refvalue rm --group` removes them together")
	a.broker.add(c)
	return c
}

func refvalueListCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the reference values of the broker", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			records, err := client.ListReferenceValues(c.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(records)
			}
			var rows [][]string
			for _, r := range records {
				rows = append(rows, []string{r.Name, strings.Join(valueStrings(r.Value), " "), r.Expiration.Format("2006-01-02"), r.By})
			}
			a.table("NAME|VALUES|EXPIRES|BY", rows)
			return nil
		},
	}
	a.broker.add(c)
	return c
}

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

// valueStrings shortens what is registered for a listing.
func valueStrings(raw json.RawMessage) []string {
	var list []string
	if json.Unmarshal(raw, &list) != nil {
		return []string{string(raw)}
	}
	for i, v := range list {
		if len(v) > 16 {
			list[i] = v[:16] + ".."
		}
	}
	return list
}
