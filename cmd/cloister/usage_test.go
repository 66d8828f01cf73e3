package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commands are all that do something, those below others included.
func commands(c *cobra.Command) []*cobra.Command {
	var out []*cobra.Command
	if c.RunE != nil || c.Run != nil {
		out = append(out, c)
	}
	for _, below := range c.Commands() {
		out = append(out, commands(below)...)
	}
	return out
}

// TestWrongUse calls every command in ways that are wrong for it: all of them end with 2 and say something, and nothing is done.
func TestWrongUse(t *testing.T) {
	t.Setenv("CLOISTER_HOME", t.TempDir())
	t.Chdir(t.TempDir())
	for _, name := range []string{envKBS, envCert, envToken, envDir} {
		t.Setenv(name, "")
	}
	tried := 0
	try := func(args ...string) {
		t.Helper()
		var out bytes.Buffer
		if got := run(t.Context(), args, nil, io.Discard, &out); got != exitUsage || out.Len() == 0 {
			t.Errorf("cloister %s: exit code %d, want %d: %s", strings.Join(args, " "), got, exitUsage, out.String())
		}
		tried++
	}
	for _, c := range commands(newRoot(&app{stdout: io.Discard, stderr: io.Discard})) {
		words := strings.Fields(c.CommandPath())[1:]
		with := func(more ...string) []string { return append(append([]string{}, words...), more...) }
		try(with("--no-such-flag")...)
		if nine := strings.Fields(strings.Repeat("x ", 9)); c.ValidateArgs(nine) != nil {
			try(with(nine...)...)
		}
		if c.ValidateArgs(nil) != nil {
			try(words...)
		}
		if c.PreRunE != nil {
			var usage usageError
			if err := c.PreRunE(c, nil); !errors.As(err, &usage) {
				t.Errorf("%s without its flags: %v, want a usage error", c.CommandPath(), err)
			}
		}
		args := words
		for range 3 { // as many as it wants
			if c.ValidateArgs(args[len(words):]) != nil {
				args = append(args[:len(args):len(args)], "x")
			}
		}
		groups := map[string]bool{}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if name, _ := pflag.UnquoteUsage(f); strings.ContainsAny(name, " -") {
				t.Errorf("%s --%s: the help shows its value as %q", c.CommandPath(), f.Name, name)
			}
			if _, required := f.Annotations[cobra.BashCompOneRequiredFlag]; required {
				try(args...)
			}
			for _, g := range f.Annotations["cobra_annotation_mutually_exclusive"] {
				groups[g] = true
			}
			if strings.HasPrefix(f.Value.Type(), "int") || strings.HasPrefix(f.Value.Type(), "uint") || f.Value.Type() == "duration" {
				try(append(args[:len(args):len(args)], "--"+f.Name+"=nonsense")...)
			}
		})
		for g := range groups {
			line := args
			for _, name := range strings.Fields(g) {
				value := "x"
				if f := c.Flags().Lookup(name); f.NoOptDefVal != "" {
					value = f.NoOptDefVal
				}
				line = append(line[:len(line):len(line)], "--"+name+"="+value)
			}
			try(line...)
		}
	}
	for _, line := range []string{ // values that only the command itself knows
		"policy generate --emptydir x pod.yaml", "policy generate --layers x pod.yaml", "policy generate --tags x pod.yaml", "policy generate --image-source x pod.yaml",
		"policy generate --for x pod.yaml", "policy generate --for aci pod.yaml", "policy generate --for run --layers host pod.yaml", "policy generate --for run a b",
		"policy generate --in-place --raw pod.yaml", "policy aci --raw --base64 pod.yaml", "policy diff - -", "policy test - -", "secret list x", "secret get x",
		"secret list --kbs x", "secret list --kbs https://", "secret rotate --size -1 kbs:///a/b/c", "evidence verify --tee x file", "key new --type x file", "audit verify",
		"secret list", "refvalue compute pod.yaml",
	} {
		try(strings.Fields(line)...)
	}
	if tried < 200 {
		t.Errorf("only %d wrong uses were tried", tried)
	}
}
