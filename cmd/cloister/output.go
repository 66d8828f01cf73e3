package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/spf13/cobra"
)

func addOutput(c *cobra.Command, to *string) {
	c.Flags().StringVarP(to, "output", "o", "", "write to FILE instead of standard output")
}

// write puts data into a file, or on standard output when no file is named.
func (a *app) write(file string, data []byte) error {
	if file == "" {
		_, err := a.stdout.Write(data)
		return err
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
