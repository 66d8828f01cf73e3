package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/broker"
	"github.com/cloister/cloister/internal/paths"
)

// The scripts run the real command line, in this process's binary.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"cloister": func() { os.Exit(run(interruptible(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
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
	for _, name := range []string{envKBS, envCert, envToken, envDir} { // or a broker of who runs the test would answer
		t.Setenv(name, "")
	}
	for _, tc := range []struct {
		args string
		code int
	}{
		{"nosuch", exitUsage}, {"run pod.yaml", exitUsage}, {"explain", exitUsage}, {"guest", exitUsage}, {"ps --nosuch", exitUsage},
		{"key new --type nosuch x", exitUsage}, {"secret put kbs://wrong file", exitUsage}, {"broker status", exitUsage},
		{"run --tee foo --initdata /nonexistent pod.yaml", exitUsage}, {"run --accel foo --initdata /nonexistent pod.yaml", exitUsage},
		{"completion tcsh", exitUsage}, {"help nothing", exitUsage}, {"guest nothing", exitUsage}, {"help guest", exitDone},
		{"logs nosuch", exitRefused}, {"audit verify /nonexistent", exitRefused}, {"version", exitDone},
	} {
		if got := run(t.Context(), strings.Fields(tc.args), nil, io.Discard, io.Discard); got != tc.code {
			t.Errorf("cloister %s: exit code %d, want %d", tc.args, got, tc.code)
		}
	}
}

// TestInterrupted follows the logs of a pod that runs, and is interrupted.
func TestInterrupted(t *testing.T) {
	t.Setenv("CLOISTER_HOME", t.TempDir())
	dirs, err := paths.Default()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dirs.Run) }) // it lies outside of the home
	logs := filepath.Join(dirs.Pods(), "web")
	state := `{"name": "web", "phase": "Running", "log_dir": "` + logs + `", "containers": [{"name": "app"}]}`
	for _, dir := range []string{filepath.Join(dirs.Run, "web"), logs} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for signal, code := range map[unix.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(interruption{signal})
		var out bytes.Buffer
		if got := run(ctx, []string{"logs", "--follow", "web"}, nil, &out, &out); got != code || out.Len() > 0 {
			t.Errorf("%s: exit code %d and %q, want %d and nothing", signal, got, out.String(), code)
		}
	}
}
