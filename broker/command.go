package broker

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cloister/cloister/broker/atomicfile"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/broker/verifier/tpm"
)

const usage = `cloister-broker verifies guests and gives them their secrets.

Usage:
  cloister-broker serve [--config FILE] [--data DIR] [--listen ADDR] [--tpm-ek-roots FILE] [--ready-fd N] [--log-level LEVEL]
  cloister-broker validate --config FILE
  cloister-broker example-config
  cloister-broker version
`

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// Main is the program cloister-broker: arguments in, exit code out.
func Main(ctx context.Context, args []string, version string, stdout, stderr io.Writer) int {
	err := run(ctx, args, version, stdout, stderr)
	var wrong usageError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, flag.ErrHelp):
		return exitDone
	case errors.As(err, &wrong):
		fmt.Fprintf(stderr, "cloister-broker: %v\n\n%s", err, usage)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "cloister-broker: error: %v\n", err)
		var h hintError
		if errors.As(err, &h) {
			fmt.Fprintf(stderr, "cloister-broker: hint: %s\n", h.hint)
		}
		return exitFailed
	}
}

// hintError is an error with the advice that helps.
type hintError struct {
	error
	hint string
}

func (e hintError) Unwrap() error { return e.error }

// usageError is a wrong command line.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

func run(ctx context.Context, args []string, version string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usageError{"no command"}
	}
	switch args[0] {
	case "serve":
		return serve(ctx, args[1:], version, stdout, stderr)
	case "validate":
		return validate(args[1:], stdout)
	case "example-config":
		_, err := io.WriteString(stdout, config.Example())
		return err
	case "version", "--version":
		_, err := fmt.Fprintf(stdout, "cloister-broker %s\n", version)
		return err
	case "help", "-h", "--help":
		_, err := io.WriteString(stdout, usage)
		return err
	default:
		return usageError{fmt.Sprintf("unknown command %q", args[0])}
	}
}

// parse parses flags and refuses what is left over. Who asks for help gets the flags; a wrong flag is left to Main, which
// prints the usage, so that it is not printed twice.
func parse(flags *flag.FlagSet, args []string, stdout io.Writer) error {
	flags.SetOutput(io.Discard)
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(stdout, "Flags of %s:\n", flags.Name())
			flags.SetOutput(stdout)
			flags.PrintDefaults()
			return err
		}
		return usageError{err.Error()}
	}
	if flags.NArg() > 0 {
		return usageError{fmt.Sprintf("unexpected argument %q", flags.Arg(0))}
	}
	return nil
}

func newFlags(name string) *flag.FlagSet {
	return flag.NewFlagSet("cloister-broker "+name, flag.ContinueOnError)
}

func validate(args []string, stdout io.Writer) error {
	flags := newFlags("validate")
	file := flags.String("config", "", "configuration `file`")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	if *file == "" {
		return usageError{"--config is missing"}
	}
	cfg, err := config.Load(*file)
	if err != nil {
		return err
	}
	if err := checkRoots(cfg); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s is valid\n", *file)
	return err
}

// checkRoots reads the roots that are named. A verifier that cannot start is no reason to end, but a mistyped name of a file
// would leave a broker that refuses every guest.
func checkRoots(cfg config.Config) error {
	if _, err := (tpm.Config{EKRootFiles: cfg.TPM.EKRoots}).Roots(); err != nil {
		return hintError{err, "--tpm-ek-roots and tpm.ek_roots name PEM files with certificates; `cloister doctor --tpm-ca FILE` writes that of this machine"}
	}
	return nil
}

func serve(ctx context.Context, args []string, version string, stdout, stderr io.Writer) (err error) {
	flags := newFlags("serve")
	file := flags.String("config", "", "configuration `file`; without it everything is at its default")
	data := flags.String("data", "", "data `directory`, overrides data_dir")
	listen := flags.String("listen", "", "`address` and port, overrides server.listen; port 0 takes a free one")
	ekRoots := flags.String("tpm-ek-roots", "", "PEM `file` with the root of the TPMs to trust, added to tpm.ek_roots")
	readyFD := flags.Int("ready-fd", -1, "write the ready line to this file `descriptor` instead of standard output, then close it")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	cfg := config.Default()
	if *file != "" {
		if cfg, err = config.Load(*file); err != nil {
			return err
		}
	}
	if *data != "" {
		cfg.DataDir = *data
	}
	if *listen != "" {
		cfg.Server.Listen = *listen
	}
	if *ekRoots != "" {
		cfg.TPM.EKRoots = append(cfg.TPM.EKRoots, *ekRoots)
	}
	if err := checkRoots(cfg); err != nil {
		return err
	}
	var min slog.Level
	if err := min.UnmarshalText([]byte(*level)); err != nil {
		return usageError{fmt.Sprintf("--log-level is %q, want debug, info, warn or error", *level)}
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: min}))
	for _, s := range cfg.Insecure() {
		log.Warn("INSECURE switch is on", "switch", s)
	}
	b, err := Open(ctx, cfg, Options{Log: log, Version: version})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return b.Serve(ctx, func(r Ready) error {
		log.Info("listening", "url", r.URL, "rest", r.AttestationREST, "grpc", r.AttestationGRPC, "data", r.DataDir)
		// The URL lies beside the token and the certificate, so that a tool on this machine needs only the directory.
		if err := noteURL(filepath.Join(cfg.DataDir, urlFile), r.URL); err != nil {
			return err
		}
		return announce(r, *readyFD, stdout)
	})
}

// urlFile holds the URL of the last start.
const urlFile = "url"

// noteURL writes the file, or takes that of an earlier start away when there is no URL now.
func noteURL(file, url string) error {
	if url != "" {
		return atomicfile.Write(file, []byte(url+"\n"), 0o644)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the URL of an earlier start: %w", err)
	}
	return nil
}

// announce writes the ready line, one JSON object.
func announce(r Ready, fd int, stdout io.Writer) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if fd < 0 {
		_, err := stdout.Write(line)
		return err
	}
	f := os.NewFile(uintptr(fd), "ready-fd")
	if f == nil {
		return fmt.Errorf("file descriptor %d is not open", fd)
	}
	_, err = f.Write(line)
	return errors.Join(err, f.Close())
}
