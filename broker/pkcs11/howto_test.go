package pkcs11_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/broker/plugin/pkcs11"
	"github.com/cloister/cloister/test/softhsm"
)

// TestHowto runs the commands of docs/howto/pkcs11.md and starts the plugin with its configuration.
func TestHowto(t *testing.T) {
	softhsm.New(t) // skips without SoftHSM
	helper := softhsm.Helper(t)
	page, err := os.ReadFile("../../docs/howto/pkcs11.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Setenv("PATH", filepath.Dir(helper)+":"+os.Getenv("PATH"))
	script := "set -eu\n"
	for _, block := range blocks(string(page)) {
		first, _, _ := strings.Cut(block, " ")
		if first == "mkdir" || first == "cloister-pkcs11" || strings.HasPrefix(first, "hsm=") {
			script += block
		}
	}
	run := exec.Command("bash", "-c", script)
	run.Dir = dir
	out, err := run.CombinedOutput()
	if err != nil || !strings.Contains(string(out), `key "storage": aes`) {
		t.Fatalf("%v: %s", err, out)
	}
	t.Setenv(softhsm.Variable, filepath.Join(dir, "hsm/softhsm2.conf"))
	for _, block := range blocks(string(page)) {
		if !strings.HasPrefix(block, "[plugins.pkcs11]") {
			continue
		}
		var c struct {
			Plugins struct {
				PKCS11 pkcs11.Config `toml:"pkcs11"`
			} `toml:"plugins"`
		}
		if err := toml.NewDecoder(strings.NewReader(block)).DisallowUnknownFields().Decode(&c); err != nil {
			t.Fatal(err)
		}
		c.Plugins.PKCS11.PINFile = filepath.Join(dir, "hsm/pin")
		c.Plugins.PKCS11.Helper = helper
		p, err := pkcs11.New(t.Context(), c.Plugins.PKCS11, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		return
	}
	t.Fatal("the page has no configuration")
}

// blocks are the indented parts of a page, in order.
func blocks(page string) (out []string) {
	inside := false
	for _, line := range strings.Split(page, "\n") {
		code, ok := strings.CutPrefix(line, "    ")
		switch {
		case ok && inside:
			out[len(out)-1] += code + "\n"
		case ok:
			out = append(out, code+"\n")
		}
		inside = ok
	}
	return out
}
