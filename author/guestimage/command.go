package guestimage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// command runs one of the tools of the build and keeps what it says, so that
// a failure is reported in the tool's own words.
type command struct {
	dir string
	env []string // added to the environment of this process
	// drop names variables that must not reach the tool.
	drop []string
}

// maxToolOutput bounds what is kept of a tool's output in an error.
const maxToolOutput = 4 << 10

func (c command) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.dir
	cmd.Env = c.environ()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		said := strings.TrimSpace(stderr.String())
		if said == "" {
			said = strings.TrimSpace(stdout.String())
		}
		if len(said) > maxToolOutput {
			said = "..." + said[len(said)-maxToolOutput:]
		}
		if said == "" {
			return nil, fmt.Errorf("%s %s: %w", name, firstArg(args), err)
		}
		return nil, fmt.Errorf("%s %s: %w: %s", name, firstArg(args), err, said)
	}
	return stdout.Bytes(), nil
}

func (c command) environ() []string {
	var env []string
outer:
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		for _, d := range c.drop {
			if key == d {
				continue outer
			}
		}
		for _, e := range c.env {
			if strings.HasPrefix(e, key+"=") {
				continue outer
			}
		}
		env = append(env, kv)
	}
	return append(env, c.env...)
}

func firstArg(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
