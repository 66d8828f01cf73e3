package main

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func evidenceCmd(a *app) *cobra.Command {
	return group("evidence", "Verify saved evidence offline", evidenceVerifyCmd(a))
}

// parseNonce accepts hex or base64.
func parseNonce(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	if b, err := hex.DecodeString(text); err == nil {
		return b, nil
	}
	if b, err := base64.StdEncoding.DecodeString(text); err == nil {
		return b, nil
	}
	return nil, usageError{errors.New("--nonce is neither hex nor base64")}
}

func readOptional(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	return os.ReadFile(file)
}

// indent prefixes every line of text.
func indent(text, prefix string) string {
	return prefix + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+prefix) + "\n"
}

var _ = fmt.Sprint
