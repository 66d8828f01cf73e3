package console

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestConsole(t *testing.T) {
	name := filepath.Join(t.TempDir(), "console")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	c := New(f)
	c.Add([]byte("\x1b[2J\x1b[01;01HBdsDxe: loading\r\ncloister-gu"))
	c.Add([]byte("est: fatal: initdata \x1b[31mmissing\x07\r\nmore\n"))
	if got := c.Fatal(); got != "initdata missing" {
		t.Errorf("reason = %q", got)
	}
	if got := c.Tail(2); !slices.Equal(got, []string{"cloister-guest: fatal: initdata missing", "more"}) {
		t.Errorf("tail = %q", got)
	}
	c.left = 4
	c.Add([]byte("123456"))
	c.Add([]byte("789"))
	c.Close()
	b, _ := os.ReadFile(name)
	if s := string(b); !strings.Contains(s, "1234\n[console output after") || strings.Contains(s, "789") {
		t.Errorf("file = %q", s)
	}
}

func TestConsolePanicAndUnfinishedLine(t *testing.T) {
	c := New(nil)
	c.Add([]byte("[ 1.0] Kernel panic - not syncing: Attempted to kill init!"))
	if got := c.Fatal(); got != "kernel panic: Attempted to kill init!" {
		t.Errorf("reason = %q", got)
	}
	c.Add([]byte("\ncloister-guest: fatal: policy"))
	if got := c.Fatal(); got != "policy" {
		t.Errorf("the guest's own reason is not preferred: %q", got)
	}
}

func FuzzConsole(f *testing.F) {
	f.Add([]byte("\x1b[1;2Hcloister-guest: fatal: x\n"), 3)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		c := New(nil)
		if cut < 0 || cut > len(b) {
			cut = 0
		}
		c.Add(b[:cut])
		c.Add(b[cut:])
		for _, l := range append(c.Tail(50), c.Fatal()) {
			if strings.ContainsAny(l, "\x1b\r\n\x00\x07") {
				t.Errorf("control characters in %q", l)
			}
		}
	})
}
