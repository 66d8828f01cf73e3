package broker

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRootsThatCannotBeRead names endorsement roots that are not there, or are no certificates.
func TestRootsThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	empty, conf := filepath.Join(dir, "empty.pem"), filepath.Join(dir, "broker.toml")
	for file, text := range map[string]string{empty: "nothing\n", conf: "data_dir = 'd'\n[tpm]\nek_roots = ['empty.pem']\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{"serve", "--data", dir, "--listen", "127.0.0.1:0", "--tpm-ek-roots", "/nope"}, "/nope: no such file"},
		{[]string{"serve", "--data", dir, "--listen", "127.0.0.1:0", "--tpm-ek-roots", empty}, "it holds no certificate"},
		{[]string{"validate", "--config", conf}, "it holds no certificate"},
	} {
		var out bytes.Buffer
		code := Main(t.Context(), tc.args, "test", &out, &out)
		if code != exitFailed || !strings.Contains(out.String(), tc.says) || !strings.Contains(out.String(), "hint: --tpm-ek-roots") {
			t.Errorf("%v: exit code %d, want %d, %q and a hint: %s", tc.args, code, exitFailed, tc.says, &out)
		}
	}
}

// TestUsage wants every flag in the usage, and the usage once.
func TestUsage(t *testing.T) {
	var help, wrong, flags bytes.Buffer
	if code := Main(t.Context(), []string{"--help"}, "test", &help, &help); code != exitDone || !strings.Contains(help.String(), "--tpm-ek-roots") {
		t.Errorf("--help: exit code %d: %s", code, &help)
	}
	code := Main(t.Context(), []string{"serve", "--nosuch"}, "test", &wrong, &wrong)
	if n := strings.Count(wrong.String(), "nosuch") + strings.Count(strings.ToLower(wrong.String()), "flags of"); code != exitUsage || n != 1 {
		t.Errorf("serve --nosuch: exit code %d, want %d and its fault once: %s", code, exitUsage, &wrong)
	}
	if code := Main(t.Context(), []string{"serve", "--help"}, "test", &flags, nil); code != exitDone || !strings.Contains(flags.String(), "-tpm-ek-roots") {
		t.Errorf("serve --help: exit code %d: %s", code, &flags)
	}
}
