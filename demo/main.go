// Command demo runs the whole path for a newcomer: from nothing to an attested pod with an encrypted image, and then
// three attacks that have to fail. It uses only the commands that a user would type, prints each of them, and ends with
// a table of how long every step took. Exit code 0 means that every step, and every refusal, was seen.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	bin := flag.String("bin", "bin", "folder of the built binaries")
	keep := flag.Bool("keep", false, "keep the working folder")
	flag.Parse()
	if err := run(ctx, *bin, *keep); err != nil {
		fmt.Fprintf(os.Stderr, "demo: error: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, keep bool) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cloister-demo-")
	if err != nil {
		return fmt.Errorf("making the working folder: %w", err)
	}
	s := newSession(ctx, bin, dir, os.Stdout)
	defer func() {
		err = errors.Join(err, s.close())
		if keep || err != nil {
			fmt.Printf("the working folder is kept: %s\n", dir)
		} else {
			os.RemoveAll(dir)
		}
	}()
	for _, step := range steps {
		if err := s.step(step); err != nil {
			return err
		}
	}
	s.report()
	return nil
}
