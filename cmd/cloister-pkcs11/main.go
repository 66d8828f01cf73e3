//go:build cgo

// Command cloister-pkcs11 is the broker's helper for PKCS#11 modules. It is a program of its own because a module is a
// vendor's C library: the broker has no C in it, and survives when a module crashes.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/cloister/cloister/broker/pkcs11/command"
)

// version is the one version number of the module.
const version = "0.1.0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command.Main(ctx, os.Args[1:], version, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
