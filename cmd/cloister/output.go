package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

func addOutput(c *cobra.Command, to *string) {
	c.Flags().StringVarP(to, "output", "o", "", "write to FILE instead of standard output")
}

// write puts data into a file, or on standard output when no file is named.
func (a *app) write(file string, data []byte) error { return a.writeMode(file, data, 0o644) }

// writeMode is write with the mode of the file, which also one that exists gets.
func (a *app) writeMode(file string, data []byte, mode os.FileMode) error {
	if file == "" {
		_, err := a.stdout.Write(data)
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	// Only regular files have a mode of their own: that of /dev/stdout is not ours.
	if info, serr := f.Stat(); mode == privateMode && serr == nil && info.Mode().IsRegular() {
		err = f.Chmod(mode)
	}
	if err == nil {
		_, err = f.Write(data)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// privateMode is the mode of files with secrets.
const privateMode = 0o600

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// printable is a text of others on one line, without what could steer a terminal.
func printable(s string) string {
	odd := func(r rune) bool { return r == utf8.RuneError || !unicode.IsGraphic(r) }
	if !strings.ContainsFunc(s, odd) {
		return s
	}
	return strconv.QuoteToGraphic(s)
}
