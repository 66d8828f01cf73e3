package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// brokerRotateCmd rotates the keys of a running broker.
func brokerRotateCmd(a *app) *cobra.Command {
	var storage, retire, rewrap, revoke bool
	c := &cobra.Command{
		Use: "rotate-key", Short: "Give the running broker a new key for attestation tokens, or a new storage key", Args: cobra.NoArgs,
		Long: "Without --storage: a new key for attestation tokens. It is published at once and signs some minutes later, when all who check\n" +
			"tokens know it; tokens of the earlier one count until they end, with --revoke not any more.\n" +
			"With --storage: a new key that everything kept is sealed with. --retire seals what older keys sealed anew and removes those that\n" +
			"a service wraps; --rewrap wraps the keys with what the service has now, after its own key was rotated there.",
		RunE: func(c *cobra.Command, _ []string) error {
			if (retire || rewrap) && !storage || revoke && storage || retire && rewrap {
				return usageError{errors.New("--retire or --rewrap go with --storage, --revoke without it")}
			}
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			if !storage {
				from, err := broker.RotateTokenKey(c.Context(), revoke)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string]any{"from": from})
				}
				fmt.Fprintf(a.stdout, "a new key for attestation tokens is published; it signs from %s\n", from.Local().Format("2006-01-02 15:04:05"))
				return nil
			}
			step := "rotate"
			switch {
			case retire:
				step = "retire"
			case rewrap:
				step = "rewrap"
			}
			done, err := broker.RotateStorageKey(c.Context(), step)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			switch step {
			case "rotate":
				fmt.Fprintf(a.stdout, "storage key %s is the current one\n", done.Current)
			case "retire":
				fmt.Fprintf(a.stdout, "everything is sealed with the current storage key; not needed any more: %s\n", orNone(done.Retired))
			default:
				fmt.Fprintf(a.stdout, "%d storage keys were wrapped anew\n", done.Rewrapped)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&revoke, "revoke", false, "end the earlier token keys at once: one of them is known to others")
	c.Flags().BoolVar(&storage, "storage", false, "the storage key")
	c.Flags().BoolVar(&retire, "retire", false, "with --storage: let go of older keys")
	c.Flags().BoolVar(&rewrap, "rewrap", false, "with --storage: wrap the keys anew")
	a.broker.add(c)
	return c
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
