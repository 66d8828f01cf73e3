package grpcdial

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/broker/outage"
)

// TestCallError: only what may go away by itself is an outage.
func TestCallError(t *testing.T) {
	p := &Pool{cfg: Config{Address: "https://as.example:1"}}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		err := p.failure(status.Error(code, "text"))
		if got, want := errors.Is(err, outage.ErrUnavailable), code == codes.Unavailable || code == codes.DeadlineExceeded; got != want {
			t.Errorf("%s: outage %v, want %v", code, got, want)
		}
		if status.Code(err) != code {
			t.Errorf("%s became %s", code, status.Code(err))
		}
		if code != codes.Aborted && !strings.Contains(err.Error(), "as.example") {
			t.Errorf("%s: %v does not say where", code, err)
		}
	}
}

func TestSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	for _, tc := range []struct {
		text string
		mode os.FileMode
		ok   bool
	}{{"word\n", 0o600, true}, {"word", 0o602, false}, {"", 0o600, false}, {"two words", 0o600, false}, {"bell\a", 0o600, false},
		{strings.Repeat("x", maxToken+1), 0o600, false}} {
		if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, tc.mode); err != nil {
			t.Fatal(err)
		}
		word, err := Secret(file)
		if (err == nil) != tc.ok || tc.ok && word != "word" {
			t.Errorf("%.10q with mode %o: %.10q, %v", tc.text, tc.mode, word, err)
		}
		if err != nil && len(tc.text) > 4 && strings.Contains(err.Error(), tc.text) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	if _, err := Secret(file + "-none"); err == nil {
		t.Error("a file that is missing is read")
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"no address":          {},
		"no roots":            {Address: "https://as.example:1", CACerts: []string{"/nonexistent"}},
		"no certificate":      {Address: "https://as.example:1", ClientCertificate: "/nonexistent", ClientKey: "/nonexistent"},
		"no token":            {Address: "https://as.example:1", AdminTokenFile: "/nonexistent"},
		"insecure by mistake": {Address: "http://as.example:1"},
	} {
		if _, err := Open(c); err == nil {
			t.Errorf("%s: it opens", name)
		}
	}
	p, err := Open(Config{Address: "http://localhost:1"})
	if err != nil || len(p.conns) != defaultPool {
		t.Fatalf("an address on this machine: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzClean: foreign text becomes one short line.
func FuzzClean(f *testing.F) {
	f.Add("0: a\n1: \x1b[31mb")
	f.Fuzz(func(t *testing.T, text string) {
		if s := clean(text); len(s) > 3*maxText || strings.ContainsFunc(s, unicode.IsControl) {
			t.Fatalf("%q becomes %q", text, s)
		}
	})
}
