// Package softhsm makes PKCS#11 tokens for tests, with SoftHSM, and builds the helper cloister-pkcs11.
package softhsm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

const (
	// PIN is the user PIN of every token.
	PIN = "48151623"
	// Label is the label of the first token.
	Label = "cloister test"
	// Module is the library of SoftHSM, as Debian installs it.
	Module = "/usr/lib/softhsm/libsofthsm2.so"
	// Variable is the variable that SoftHSM needs.
	Variable = "SOFTHSM2_CONF"

	soPIN = "0123456789"
)

// HSM is a module with its own folder of tokens; the variable is set for the test.
type HSM struct {
	// Dir holds a folder for each token.
	Dir string
	// PINFile holds PIN.
	PINFile string
}

// New makes an HSM with one token. Without SoftHSM the test is skipped, in CI it fails.
func New(t testing.TB) *HSM {
	t.Helper()
	if _, err := os.Stat(Module); err != nil {
		needs.Missing(t, "softhsm2: %v", err)
	}
	dir := t.TempDir()
	h := &HSM{Dir: filepath.Join(dir, "tokens"), PINFile: filepath.Join(dir, "pin")}
	if err := os.Mkdir(h.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	text := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", h.Dir)
	for file, content := range map[string]string{conf: text, h.PINFile: PIN + "\n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(Variable, conf)
	h.AddToken(t, Label)
	return h
}

// AddToken makes one more token.
func (h *HSM) AddToken(t testing.TB, label string) {
	t.Helper()
	h.Util(t, "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", soPIN)
}

// Util runs softhsm2-util.
func (h *HSM) Util(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("softhsm2-util", args...).CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util %s: %v: %s", args[0], err, out)
	}
}

// WrongPIN writes a file with a PIN that is none.
func (h *HSM) WrongPIN(t testing.TB) string {
	t.Helper()
	path := h.PINFile + ".wrong"
	if err := os.WriteFile(path, []byte("99999999"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Helper builds cloister-pkcs11. Without a C compiler the test is skipped, in CI it fails.
func Helper(t testing.TB) string {
	t.Helper()
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "gcc"
	}
	if _, err := exec.LookPath(strings.Fields(cc)[0]); err != nil {
		needs.Missing(t, "gcc: %v", err)
	}
	_, file, _, _ := runtime.Caller(0)
	out := filepath.Join(t.TempDir(), "cloister-pkcs11")
	build := exec.Command("go", "build", "-o", out, "./cmd/cloister-pkcs11")
	build.Dir = filepath.Join(filepath.Dir(file), "..", "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building cloister-pkcs11: %v: %s", err, text)
	}
	return out
}

// Run runs a command of the helper and returns what it prints.
func (h *HSM) Run(t testing.TB, helper, command string, more ...string) (string, error) {
	t.Helper()
	args := append([]string{command, "--module", Module, "--token-label", Label, "--pin-file", h.PINFile}, more...)
	out, err := exec.Command(helper, args...).CombinedOutput()
	return string(out), err
}
