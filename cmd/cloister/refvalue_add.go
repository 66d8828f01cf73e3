package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/refstore"
)

// addFlags say how values are registered.
type addFlags struct {
	group                    string
	literal, single, replace bool
}

func refvalueAddCmd(a *app) *cobra.Command {
	var f addFlags
	c := &cobra.Command{
		Use: "add FILE | add NAME VALUE...", Short: "Register values at the broker, beside the ones it has", Args: atLeast(1),
		Long: "FILE is a JSON object of names and values: one of `cloister refvalue compute -o`, or one of your own for another\n" +
			"platform. A list is a set of values that are all accepted. What is there stays, with its own expiry, unless\n" +
			"--replace says otherwise. NAME VALUE is the short form for one name; `cloister explain` prints it for what is unknown.",
		RunE: func(c *cobra.Command, args []string) error {
			values, err := f.values(args)
			if err != nil {
				return err
			}
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			m := refstore.Message{Group: f.group, Mode: refstore.ModeAdd}
			if f.replace || f.single {
				m.Mode = refstore.ModeReplace
			}
			if err := broker.SendReferenceValues(c.Context(), values, m); err != nil {
				return err
			}
			return a.printAccepted(c, broker, values)
		},
	}
	c.Flags().StringVar(&f.group, "group", "", "label the values, by their pod for example, so that 'refvalue rm --group' removes them together")
	c.Flags().BoolVar(&f.literal, "literal", false, "VALUE is JSON, such as a number or true, instead of a text")
	c.Flags().BoolVar(&f.single, "single", false, "VALUE is the only one and no list, for what a policy compares with ==; it takes the place of what is there")
	c.Flags().BoolVar(&f.replace, "replace", false, "other values that the names have (with --group: by that group) end")
	a.broker.add(c)
	return c
}

// values are those of a file, or of one name.
func (f addFlags) values(args []string) (map[string]any, error) {
	if len(args) == 1 {
		if f.literal || f.single {
			return nil, usageError{errors.New("--literal and --single are for NAME VALUE, not for a file")}
		}
		return readValueFile(args[0])
	}
	var list []any
	for _, text := range args[1:] {
		var v any = text
		if f.literal {
			raw := json.RawMessage(text)
			if !json.Valid(raw) {
				return nil, usageError{fmt.Errorf("with --literal, value %q is not JSON", text)}
			}
			v = raw
		}
		list = append(list, v)
	}
	if !f.single {
		return map[string]any{args[0]: list}, nil
	}
	if len(list) != 1 {
		return nil, usageError{fmt.Errorf("--single takes one value, got %d", len(list))}
	}
	return map[string]any{args[0]: list[0]}, nil
}

func readValueFile(file string) (map[string]any, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the values: %w", err)
	}
	var values map[string]any
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&values); err != nil {
		return nil, hint(fmt.Errorf("reading the values in %s: %w", file, err), "make the file with `cloister refvalue compute -o FILE`")
	}
	return values, nil
}

// printAccepted tells how many values the names have now.
func (a *app) printAccepted(c *cobra.Command, broker *client.Client, values map[string]any) error {
	records, err := broker.ListReferenceValues(c.Context())
	var refused *client.StatusError
	if errors.As(err, &refused) && strings.Contains(refused.Detail, "unsupported operation") {
		// A service elsewhere took them, whose protocol has no list.
		if a.json {
			return a.printJSON(map[string]any{"forwarded": sortedKeys(values)})
		}
		for _, name := range sortedKeys(values) {
			fmt.Fprintf(a.stdout, "%s: forwarded to the service that keeps the reference values\n", name)
		}
		return nil
	}
	if err != nil {
		return err
	}
	accepted := map[string]int{}
	for _, r := range records {
		if _, ok := values[r.Name]; ok {
			accepted[r.Name] = len(valueStrings(r.Value))
		}
	}
	if a.json {
		return a.printJSON(map[string]any{"accepted": accepted})
	}
	for _, name := range sortedKeys(accepted) {
		fmt.Fprintf(a.stdout, "%s: %d accepted\n", name, accepted[name])
	}
	return nil
}
