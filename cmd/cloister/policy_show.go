package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/policyview"
)

func policyExplainCmd(a *app) *cobra.Command {
	var o policyview.PageOptions
	c := &cobra.Command{
		Use:   "explain POLICY",
		Short: "One page about a policy: what may run, from which images, with which mounts, and what the host may do",
		Long: "POLICY is the text of a policy, an initdata document, the value of an initdata annotation or of a ccePolicy, or a manifest\n" +
			"or template with such values; - is standard input. For policies of `cloister run`, of generators for Kubernetes and of\n" +
			"Azure Container Instances. What the rules themselves say is not shown.",
		Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			found, err := a.policyTexts(args[0])
			if err != nil {
				return err
			}
			for i, f := range found {
				p, err := parseView(args[0], f.text)
				if err != nil {
					return err
				}
				if a.json {
					if err := a.printJSON(map[string]any{"object": f.object, "rules": p.Rules, "always": p.Always, "never": p.Never, "warnings": p.Warnings(), "policy_data": p.Data}); err != nil {
						return err
					}
					continue
				}
				if i > 0 {
					fmt.Fprintln(a.stdout)
				}
				if f.object != "" {
					fmt.Fprintf(a.stdout, "%s\n", f.object)
				}
				if err := p.Page(a.stdout, o); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&o.Values, "values", false, "show values of environment variables too")
	return c
}

func policyDiffCmd(a *app) *cobra.Command {
	var values bool
	c := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "What differs between two policies, by container; exit code 1 if anything does",
		Long:  "OLD and NEW are as for `cloister policy explain`. Of manifests with several policies those of the same object are compared.",
		Args:  exactly(2),
		RunE: func(_ *cobra.Command, args []string) error {
			if args[0] == "-" && args[1] == "-" {
				return usageError{errors.New("only one of the two can be standard input")}
			}
			pairs, err := a.policyPairs(args[0], args[1])
			if err != nil {
				return err
			}
			return a.printDiff(pairs, values)
		},
	}
	c.Flags().BoolVar(&values, "values", false, "show values of environment variables too")
	return c
}

func parseView(file, text string) (*policyview.Policy, error) {
	p, err := policyview.Parse(text)
	if err != nil {
		return nil, hint(fmt.Errorf("%s: %w", file, err), policyForms)
	}
	return p, nil
}
