package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/resource"
)

func brokerPolicyCmd(a *app) *cobra.Command {
	c := group("policy", "See and set the policies that the broker decides by", brokerPolicyListCmd(a), brokerPolicyGetCmd(a), brokerPolicySetCmd(a))
	c.Long = "Attestation policies appraise evidence and are named by id and class of device, such as default_cpu. " + resource.PolicyID + " decides\n" +
		"what an attested guest may have. `cloister appraise --dry-run` tells beforehand what an attestation policy would say."
	return c
}

// policyKind is the kind of the policy of an id.
func policyKind(id string) client.PolicyKind {
	if id == resource.PolicyID {
		return client.ResourcePolicy
	}
	return client.AttestationPolicy
}

func brokerPolicyListCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the policies of the broker", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			all := map[client.PolicyKind][]string{}
			var rows [][]string
			for _, kind := range []client.PolicyKind{client.ResourcePolicy, client.AttestationPolicy} {
				if all[kind], err = broker.Policies(c.Context(), kind); err != nil {
					return err
				}
				for _, id := range all[kind] {
					rows = append(rows, []string{id, string(kind)})
				}
			}
			if a.json {
				return a.printJSON(all)
			}
			a.table("POLICY|DECIDES ABOUT", rows)
			return nil
		},
	}
	a.broker.add(c)
	return c
}

func brokerPolicyGetCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "get ID", Short: "Print the text of a policy", Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			text, err := broker.Policy(c.Context(), policyKind(args[0]), args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]string{"id": args[0], "policy": text})
			}
			fmt.Fprint(a.stdout, text)
			return nil
		},
	}
	a.broker.add(c)
	return c
}

func brokerPolicySetCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "set ID FILE.rego", Short: "Let the broker decide by the policy in FILE", Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[1])
			if err != nil {
				return fmt.Errorf("reading the policy: %w", err)
			}
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			if policyKind(args[0]) == client.ResourcePolicy {
				err = broker.SetResourcePolicy(c.Context(), string(text))
			} else {
				err = broker.SetAttestationPolicy(c.Context(), args[0], string(text))
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"id": args[0], "bytes": len(text)})
			}
			fmt.Fprintf(a.stdout, "policy %s: set, %d bytes\n", args[0], len(text))
			return nil
		},
	}
	a.broker.add(c)
	return c
}
