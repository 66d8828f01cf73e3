// Command cloister is the user's tool: it builds the guest, makes policies and expected measurements, runs pods and
// talks to the broker. It is the only place where the author, host and broker zones meet, each behind its own package.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

func main() {
	ctx := interruptible()
	// The ttrpc library reports closed streams to this global logger; our own errors say what a user has to know.
	logrus.SetOutput(io.Discard)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// interruptible is a context that SIGINT and SIGTERM end. It lasts as long as the process.
func interruptible() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	go func() {
		if s, ok := (<-signals).(unix.Signal); ok {
			cancel(interruption{s})
		}
	}()
	return ctx
}

// interruption is the cause of a context that a signal ended. It counts as context.Canceled.
type interruption struct{ unix.Signal }

func (i interruption) Error() string        { return fmt.Sprintf("ended by %s", unix.SignalName(i.Signal)) }
func (i interruption) Is(target error) bool { return target == context.Canceled }

// code is the exit code by which shells know a program that a signal ended.
func (i interruption) code() int { return 128 + int(i.Signal) }

// Exit codes, the same for every verb. A verb that a signal ended before it was done adds 128 to the number of the signal.
const (
	exitDone    = 0
	exitRefused = 1 // refused or failed
	exitUsage   = 2 // wrong use
)

// run executes one command line. It has no globals and does not exit, so that tests can call it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	app := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	root := newRoot(app)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var exit exitError
	var usage usageError
	var signal interruption
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &exit):
		return exit.code()
	case errors.As(context.Cause(ctx), &signal):
		if !errors.Is(err, context.Canceled) { // that it was interrupted is known to whoever did it
			printError(stderr, err)
		}
		return signal.code()
	case errors.As(err, &usage), !app.started: // what fails before a command starts is how it was called
		printError(stderr, err)
		return exitUsage
	}
	printError(stderr, err)
	return exitRefused
}

// exitError carries the exit code of a workload through the command tree; the workload has already said why.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// code is what the process ends with. A status that does not fit must not come out as success.
func (e exitError) code() int {
	if e < 0 || e > 255 {
		return exitRefused
	}
	return int(e)
}

// usageError marks a wrong use of the command line.
type usageError struct{ error }

// hintError is an error with the command that helps.
type hintError struct {
	error
	hint string
}

func (e hintError) Unwrap() error { return e.error }

// hint attaches advice, lower case and without a full stop, to an error.
func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return hintError{err, fmt.Sprintf(format, args...)}
}

func printError(w io.Writer, err error) {
	fmt.Fprintf(w, "cloister: error: %v\n", err)
	var h hintError
	if errors.As(err, &h) {
		fmt.Fprintf(w, "cloister: hint: %s\n", h.hint)
	}
}
