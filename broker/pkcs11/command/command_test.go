//go:build cgo

package command

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/test/softhsm"
)

func main(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), args, "1.2.3", &out, &errs)
	return code, out.String(), errs.String()
}

func TestWrongCommandLines(t *testing.T) {
	for _, line := range []string{"", "nonsense", "tokens", "check --module /m", "check --module /m --pin-file /p", "serve --module /m",
		"init --module /m --pin-file /p --token-label l", "tokens --module /m x", "tokens --pin-file /p", "check --pin 1234",
		"check --module /m --pin-file /p --token-label l --after-wrong-pin=maybe"} {
		if code, out, errs := main(t, strings.Fields(line)...); code != exitUsage || out != "" || !strings.Contains(errs, "Usage:") {
			t.Errorf("%q: %d, %q, %q", line, code, out, errs)
		}
	}
	for _, line := range []string{"version", "help", "check --help"} {
		if code, out, errs := main(t, strings.Fields(line)...); code != exitDone || out == "" || errs != "" {
			t.Errorf("%q: %d, %q, %q", line, code, out, errs)
		}
	}
	if code, _, errs := main(t, "tokens", "--module", "/nonexistent.so"); code != exitFailed || !strings.Contains(errs, "/nonexistent.so") {
		t.Errorf("%d, %q", code, errs)
	}
}

func TestTokensCheckInit(t *testing.T) {
	h := softhsm.New(t)
	if code, out, errs := main(t, "tokens", "--module", softhsm.Module); code != exitDone ||
		!strings.Contains(out, `label="`+softhsm.Label+`"`) {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	do := func(command string, more ...string) (int, string, string) {
		return main(t, append([]string{command, "--module", softhsm.Module, "--token-label", softhsm.Label, "--pin-file", h.PINFile}, more...)...)
	}
	if code, _, errs := do("check", "--key-label", "k"); code != exitFailed || !strings.Contains(errs, "hint: cloister-pkcs11 init") {
		t.Errorf("%d, %q", code, errs)
	}
	if code, out, errs := do("init", "--key-label", "k"); code != exitDone || !strings.Contains(out, `made aes key "k"`) {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	if code, out, errs := do("check", "--key-label", "k"); code != exitDone || !strings.Contains(out, `key "k": aes`) ||
		strings.Contains(out, softhsm.PIN) {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
}

func TestPINFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin")
	for text, want := range map[string]string{"1234": "1234", "1234\n": "1234", "1234\r\n": "1234", " 1 2 ": " 1 2 ",
		strings.Repeat("9", maxPIN) + "\n": strings.Repeat("9", maxPIN),
		"":                                 "", "\n": "", "12\n34": "", "12\x0034": "", "1234\n\n": "", strings.Repeat("9", maxPIN+1): "", strings.Repeat("9", 1<<20): ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		pin, err := readPIN(path)
		if string(pin) != want || (err == nil) != (want != "") {
			t.Errorf("%.20q: %.20q, %v", text, pin, err)
		}
		if err != nil && strings.Contains(err.Error(), "999") {
			t.Errorf("the error shows the PIN: %v", err)
		}
	}
	if err := os.Chmod(path, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, err := readPIN(path); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Error(err)
	}
	pipe := path + ".pipe"
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{pipe, filepath.Dir(path), "/nonexistent"} {
		if _, err := readPIN(bad); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
