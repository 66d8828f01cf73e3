package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/policytest"
	"github.com/cloister/cloister/guest/gate"
)

func recordHelp() string {
	return `REQUESTS holds one JSON object {"kind": RULE, "request": INPUT} per line, or a JSON list of them; "description" and
"allowed" (the decision that is expected) may be there. POLICY is the text of a policy, an initdata document, the value of an
initdata annotation, or a manifest with such annotations. Use - for standard input. The kinds are
  ` + strings.Join(lines(policytest.Kinds(), 110), "\n  ")
}

// lines puts words into lines of a width.
func lines(words []string, width int) []string {
	var out []string
	for _, w := range words {
		if n := len(out); n > 0 && len(out[n-1])+1+len(w) <= width {
			out[n-1] += " " + w
		} else {
			out = append(out, w)
		}
	}
	return out
}

func policyTestCmd(a *app) *cobra.Command {
	var object string
	cmd := &cobra.Command{
		Use:   "test POLICY REQUESTS",
		Short: "Replay recorded requests: each must be decided as expected, or allowed where nothing is expected",
		Long:  recordHelp(),
		Args:  exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			total, failed := 0, 0
			err := a.replay(c, args, object, func(r policytest.Result) error {
				total++
				if !r.Unexpected {
					return nil
				}
				failed++
				if a.json {
					return a.printJSON(r)
				}
				fmt.Fprintf(a.stdout, "request %d, %s: %s\n", r.Number, title(r), verdict(r))
				return nil
			})
			if err != nil {
				return err
			}
			if failed > 0 {
				return hint(fmt.Errorf("%d of %d requests are not decided as expected", failed, total), "`cloister policy sim %s %s` shows every decision and the policy's state", args[0], args[1])
			}
			if !a.json {
				fmt.Fprintf(a.stdout, "%d requests are decided as expected\n", total)
			}
			return nil
		},
	}
	objectFlag(cmd, &object)
	return cmd
}

func policySimCmd(a *app) *cobra.Command {
	var object string
	cmd := &cobra.Command{
		Use:   "sim POLICY REQUESTS",
		Short: "Print the decision about each recorded request, its reason, and how it changes the policy's state",
		Long:  recordHelp(),
		Args:  exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.replay(c, args, object, func(r policytest.Result) error {
				if a.json {
					return a.printJSON(r)
				}
				fmt.Fprintf(a.stdout, "%d %s: %s\n", r.Number, title(r), verdict(r))
				for _, key := range sortedKeys(r.Changes) {
					value := "removed"
					if v := r.Changes[key]; v != nil {
						value = fmt.Sprint("= ", v)
					}
					fmt.Fprintf(a.stdout, "    %s %s\n", printable(key), printable(value))
				}
				return nil
			})
		},
	}
	objectFlag(cmd, &object)
	return cmd
}

func objectFlag(c *cobra.Command, object *string) {
	c.Flags().StringVar(object, "object", "", "whose policy it is, in a manifest with several: such as Deployment/web")
}

// replay judges recorded requests with the engine of the guest.
func (a *app) replay(c *cobra.Command, args []string, object string, each func(policytest.Result) error) error {
	if args[0] == "-" && args[1] == "-" {
		return usageError{errors.New("only one of the two can be standard input")}
	}
	text, err := a.policyText(args[0], object)
	if err != nil {
		return err
	}
	in := a.stdin
	if args[1] != "-" {
		f, err := os.Open(args[1])
		if err != nil {
			return fmt.Errorf("reading the requests: %w", err)
		}
		defer f.Close()
		in = f
	}
	cases, err := policytest.Read(in)
	var kind *policytest.KindError
	if errors.As(err, &kind) {
		return hint(err, "`%s --help` lists the kinds", c.CommandPath())
	}
	if err != nil {
		return hint(err, "see `%s --help` for the form of requests", c.CommandPath())
	}
	e, err := gate.New(text, gate.Options{})
	if err != nil {
		return hint(err, "the guest would stop for this policy")
	}
	return policytest.Run(c.Context(), e, cases, each)
}

func title(r policytest.Result) string {
	if r.Description == "" {
		return printable(r.Kind)
	}
	return printable(r.Kind + " (" + r.Description + ")")
}

func verdict(r policytest.Result) string {
	if r.Allowed {
		return "allowed"
	}
	return "refused: " + printable(r.Reason)
}
