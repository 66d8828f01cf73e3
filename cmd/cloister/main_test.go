package main

import (
	"context"
	"os"
	"os/signal"
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
