// Command cloister-broker is the key broker: it verifies guests, appraises them by policy and gives them their secrets.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/cloister/cloister/broker"
)

// version is the one version number of the module.
const version = "0.1.0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := broker.Main(ctx, os.Args[1:], version, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
