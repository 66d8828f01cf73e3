package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cloister/cloister/broker"
)

// The scripts run the real command line, in this process's binary.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"cloister": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"cloister-broker": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
			defer stop()
			os.Exit(broker.Main(ctx, os.Args[1:], Version, os.Stdout, os.Stderr))
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("CLOISTER_HOME", env.WorkDir+"/home")
			return nil
		},
	})
}

// TestExitCodes tells wrong use from failure, which the scripts cannot: for them both are "not 0".
func TestExitCodes(t *testing.T) {
	t.Setenv("CLOISTER_HOME", t.TempDir())
	for _, tc := range []struct {
		args string
		code int
	}{
		{"nosuch", exitUsage}, {"run pod.yaml", exitUsage}, {"explain", exitUsage}, {"guest", exitUsage}, {"ps --nosuch", exitUsage},
		{"key new --type nosuch x", exitUsage}, {"secret put kbs://wrong file", exitUsage}, {"broker status", exitUsage},
		{"logs nosuch", exitRefused}, {"broker audit --verify /nonexistent", exitRefused}, {"version", exitDone},
	} {
		if got := run(t.Context(), strings.Fields(tc.args), nil, io.Discard, io.Discard); got != tc.code {
			t.Errorf("cloister %s: exit code %d, want %d", tc.args, got, tc.code)
		}
	}
}
