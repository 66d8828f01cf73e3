// Command cloister is the user's tool: it builds the guest, makes policies and expected measurements, runs pods and
// talks to the broker. It is the only place where the author, host and broker zones meet, each behind its own package.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"

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
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	app.json = app.json || slices.Contains(args, "--json") // a wrong flag before it keeps it from being read
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
			app.printError(err)
		}
		return signal.code()
	case errors.As(err, &usage), !app.started: // what fails before a command starts is how it was called
		app.printError(err)
		return exitUsage
	}
	app.printError(err)
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

// requestID is how the broker names the request in its refusals.
var requestID = regexp.MustCompile(`\brequest ([0-9a-f]{32})\b`)

// printError prints an error with its hint: as text, or with --json as one line of JSON.
func (a *app) printError(err error) {
	var h hintError
	if !errors.As(err, &h) {
		h.hint = brokerHint(err)
	}
	text := err.Error()
	if h.hint == "" { // packages that know no hintError end their errors with one
		if before, after, found := strings.Cut(text, "\nhint: "); found && !strings.Contains(after, "\n") {
			text, h.hint = before, after
		}
	}
	if a.json {
		line := struct {
			Error   string `json:"error"`
			Hint    string `json:"hint,omitempty"`
			Request string `json:"request,omitempty"`
		}{Error: text, Hint: h.hint}
		if m := requestID.FindStringSubmatch(line.Error); m != nil {
			line.Request = m[1]
		}
		enc := json.NewEncoder(a.stderr)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(line) // to whom could it be told
		return
	}
	fmt.Fprintf(a.stderr, "cloister: error: %s\n", harmless(text))
	if h.hint != "" {
		fmt.Fprintf(a.stderr, "cloister: hint: %s\n", harmless(h.hint))
	}
}
