//go:build cgo

// Package command is the program cloister-pkcs11: the broker's helper for PKCS#11 modules, and what an operator needs to
// prepare a token for it.
package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/cloister/cloister/broker/pkcs11/link"
	"github.com/cloister/cloister/broker/pkcs11/token"
)

const usage = `cloister-pkcs11 lets the broker work with a hardware security module.

Usage:
  cloister-pkcs11 tokens --module FILE
  cloister-pkcs11 check  --module FILE (--token-label L | --token-serial S) --pin-file FILE [--key-label L] [--after-wrong-pin]
  cloister-pkcs11 init   --module FILE (--token-label L | --token-serial S) --pin-file FILE --key-label L [--type auto|aes|rsa]
  cloister-pkcs11 serve  (started by the broker, which it speaks to over file descriptor 3)
  cloister-pkcs11 version

tokens lists the tokens of a module. check logs in and looks at a key. init makes a key that never leaves the token: auto is
AES-256 when the token has AES-GCM and RSA otherwise. The PIN file has mode 0600 and holds the user PIN and nothing else.
`

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a wrong command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// Main is the program: arguments in, exit code out.
func Main(ctx context.Context, args []string, version string, stdout, stderr io.Writer) int {
	err := run(ctx, args, version, stdout)
	var wrong usageError
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return exitDone
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "cloister-pkcs11: %v\n\n%s", err, usage)
		return exitUsage
	}
	fmt.Fprintf(stderr, "cloister-pkcs11: error: %v\n", err)
	if h := hint(err); h != "" {
		fmt.Fprintf(stderr, "cloister-pkcs11: hint: %s\n", h)
	}
	return exitFailed
}

func hint(err error) string {
	switch link.StatusOf(err) {
	case link.StatusAbsent:
		return "cloister-pkcs11 tokens --module FILE lists what is there"
	case link.StatusPIN:
		return "tokens lock after a few wrong PINs: look at the PIN file before the next attempt"
	case link.StatusBadKey:
		return "cloister-pkcs11 init --key-label LABEL makes a key that fits"
	}
	return ""
}

// options are the flags of all commands.
type options struct {
	token.Options
	pinFile, keyLabel, kind string
	afterWrongPIN           bool
}

func run(ctx context.Context, args []string, version string, stdout io.Writer) error {
	if len(args) == 0 {
		return usageError{"no command"}
	}
	name := args[0]
	var o options
	flags := flag.NewFlagSet("cloister-pkcs11 "+name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.Module, "module", "", "PKCS#11 library `file`")
	selects := func() {
		flags.StringVar(&o.Label, "token-label", "", "`label` of the token")
		flags.StringVar(&o.Serial, "token-serial", "", "serial `number` of the token")
		flags.StringVar(&o.pinFile, "pin-file", "", "`file` with the user PIN")
	}
	var do func() error
	switch name {
	case "tokens":
		do = func() error { return tokens(o, stdout) }
	case "check":
		selects()
		flags.StringVar(&o.keyLabel, "key-label", "", "`label` of a storage key to look at")
		flags.BoolVar(&o.afterWrongPIN, "after-wrong-pin", false, "log in although the token says that the last PIN was wrong")
		do = func() error { return check(o, stdout) }
	case "init":
		selects()
		flags.StringVar(&o.keyLabel, "key-label", "", "`label` of the new key")
		flags.StringVar(&o.kind, "type", string(token.KeyAuto), "`type` of the new key: auto, aes or rsa")
		do = func() error { return generate(o, stdout) }
	case "serve":
		selects()
		flags.IntVar(&o.Sessions, "sessions", 1, "sessions to open")
		do = func() error { return serveBroker(ctx, o) }
	case "version", "--version":
		_, err := fmt.Fprintf(stdout, "cloister-pkcs11 %s\n", version)
		return err
	case "help", "-h", "--help":
		_, err := io.WriteString(stdout, usage)
		return err
	default:
		return usageError{fmt.Sprintf("unknown command %q", name)}
	}
	if err := flags.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
		_, werr := io.WriteString(stdout, usage)
		return errors.Join(err, werr)
	} else if err != nil {
		return usageError{err.Error()}
	}
	switch {
	case flags.NArg() > 0:
		return usageError{fmt.Sprintf("unexpected argument %q", flags.Arg(0))}
	case o.Module == "":
		return usageError{"--module is missing"}
	case name != "tokens" && o.pinFile == "":
		return usageError{"--pin-file is missing"}
	case name != "tokens" && o.Label == "" && o.Serial == "":
		return usageError{"--token-label and --token-serial are missing, one is needed"}
	case name == "init" && (o.keyLabel == "" || len(o.keyLabel) > link.MaxLabel):
		return usageError{fmt.Sprintf("--key-label has %d bytes, want 1 to %d", len(o.keyLabel), link.MaxLabel)}
	}
	return do()
}

func tokens(o options, stdout io.Writer) error {
	m, err := token.Load(o.Module)
	if err != nil {
		return err
	}
	all, err := m.Tokens()
	if err := errors.Join(err, m.Close()); err != nil {
		return err
	}
	for _, i := range all {
		if _, err := fmt.Fprintf(stdout, "label=%q serial=%q manufacturer=%q model=%q initialised=%t user-pin=%t\n",
			i.Label, i.Serial, i.Manufacturer, i.Model, i.Initialised, i.PINReady); err != nil {
			return err
		}
	}
	return nil
}

// login opens the token for one command.
func login(o options) (*token.Token, error) {
	pin, err := readPIN(o.pinFile)
	if err != nil {
		return nil, err
	}
	o.Sessions = 1
	return token.Open(o.Options, pin, token.Login{AfterWrongPIN: o.afterWrongPIN})
}

func check(o options, stdout io.Writer) error {
	t, err := login(o)
	if err != nil {
		return err
	}
	i := t.Info()
	_, err = fmt.Fprintf(stdout, "token %q serial %q: the PIN is right, AES-GCM %t\n", i.Label, i.Serial, t.AESGCM())
	if err == nil && o.keyLabel != "" {
		var kind token.KeyType
		if kind, err = t.Describe(o.keyLabel); err == nil {
			_, err = fmt.Fprintf(stdout, "key %q: %s, its value cannot leave the token\n", o.keyLabel, kind)
		}
	}
	return errors.Join(err, t.Close())
}

func generate(o options, stdout io.Writer) error {
	t, err := login(o)
	if err != nil {
		return err
	}
	kind, err := t.Generate(o.keyLabel, token.KeyType(o.kind))
	if err == nil {
		_, err = fmt.Fprintf(stdout, "made %s key %q, its value cannot leave the token\n", kind, o.keyLabel)
	}
	return errors.Join(err, t.Close())
}
