package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// app is what every command shares: where to read and write, and the flags that mean the same everywhere.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	json           bool
	started        bool // a command was found and its flags were right
	broker         brokerFlags
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "cloister",
		Short: "Run container pods on hosts nobody has to trust",
		Long: "Cloister runs each pod in its own measured micro-VM. The guest proves what it is to a key broker,\n" +
			"and only then gets the keys of its images and secrets.",
		SilenceUsage:  true,
		SilenceErrors: true,
		// cobra checks these only after this function: then they would count as failures of the command.
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			if err := errors.Join(c.ValidateRequiredFlags(), c.ValidateFlagGroups()); err != nil {
				return hintError{usageError{err}, "see `" + c.CommandPath() + " --help`"}
			}
			a.started = true
			return nil
		},
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetIn(a.stdin)
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON for machines")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return hintError{usageError{err}, "see `" + c.CommandPath() + " --help`"}
	})
	root.AddGroup(
		&cobra.Group{ID: "pods", Title: "Pods:"},
		&cobra.Group{ID: "author", Title: "On a trusted desk:"},
		&cobra.Group{ID: "trust", Title: "Trust:"},
		&cobra.Group{ID: "host", Title: "Host:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("pods", runCmd(a), psCmd(a), logsCmd(a), execCmd(a), stopCmd(a), traceCmd(a))
	add("author", guestCmd(a), imageCmd(a), keyCmd(a), policyCmd(a), initdataCmd(a), refvalueCmd(a), secretCmd(a), tenantCmd(a))
	add("trust", brokerCmd(a), evidenceCmd(a), attestCmd(a), explainCmd(a), appraiseCmd(a), collateralCmd(a), auditCmd(a))
	add("host", doctorCmd(a), checkCmd(a), configCmd(a), directCmd(a))
	root.AddCommand(superviseCmd(a), versionCmd(a))
	root.SetHelpCommand(helpCmd())
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil {
		onlyVerbs(c)
	}
	return root
}

// printJSON writes v indented, for --json.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints rows under a header, aligned.
func (a *app) table(header string, rows [][]string) {
	w := tabwriter.NewWriter(a.stdout, 0, 4, 2, ' ', 0)
	if header != "" {
		fmt.Fprintln(w, strings.ReplaceAll(header, "|", "\t"))
	}
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
}

// exactly is cobra.ExactArgs with our exit code and hint.
func exactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return hintError{usageError{fmt.Errorf("%s takes %d argument(s), got %d", c.CommandPath(), n, len(args))}, "see `" + c.CommandPath() + " --help`"}
		}
		return nil
	}
}

// atLeast is cobra.MinimumNArgs with our exit code and hint.
func atLeast(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < n {
			return hintError{usageError{fmt.Errorf("%s takes at least %d argument(s), got %d", c.CommandPath(), n, len(args))}, "see `" + c.CommandPath() + " --help`"}
		}
		return nil
	}
}

// group makes a command that only has verbs below it.
func group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(verbs...)
	onlyVerbs(c)
	return c
}

// onlyVerbs makes a command fail that is called without one of the verbs below it.
func onlyVerbs(c *cobra.Command) {
	c.Args = knownVerb
	c.RunE = func(c *cobra.Command, _ []string) error {
		return hintError{usageError{fmt.Errorf("%s needs a verb", c.CommandPath())}, "see `" + c.CommandPath() + " --help`"}
	}
}

// knownVerb refuses what is no verb of a command, and names the one that was probably meant. That is how cobra treats its topmost
// command, and no other.
func knownVerb(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	c.SuggestionsMinimumDistance = 2
	help := "see `" + c.CommandPath() + " --help`"
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		help = "did you mean `" + c.CommandPath() + " " + near[0] + "`?"
	}
	return hintError{usageError{fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())}, help}
}

// helpCmd is `cloister help`, which fails for what does not exist.
func helpCmd() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND...]", Short: "Help about any command",
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err != nil {
				about, rest = c.Root(), args
			}
			if err := knownVerb(about, rest); err != nil {
				return err
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// needs refuses a command line without the named flags.
func needs(c *cobra.Command, flags ...string) {
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		for _, name := range flags {
			if !c.Flags().Changed(name) {
				return hintError{usageError{fmt.Errorf("%s needs --%s", c.CommandPath(), name)}, "see `" + c.CommandPath() + " --help`"}
			}
		}
		return nil
	}
}
