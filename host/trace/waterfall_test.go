package trace

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// golden compares with a file, which CLOISTER_UPDATE=1 writes.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("CLOISTER_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestWaterfall(t *testing.T) {
	began := time.Date(2026, 3, 4, 5, 6, 7, 890e6, time.UTC)
	for name, tr := range map[string]*Trace{
		"sandbox.txt": {
			Name: "web", Namespace: "default", ID: "3f2a9c0d1e", Began: began, Attrs: map[string]string{"vmm": "qemu", "tee": "none"},
			Steps: []Entry{
				{N: 1, Name: "sandbox", Took: ms(2000)},
				{N: 2, In: 1, Name: "network", Start: ms(10), Took: ms(200)},
				{N: 3, In: 1, Name: "share", Start: ms(10), Took: ms(90)},
				{N: 4, In: 1, Name: "vm", Start: ms(215), Took: ms(1700)},
				{N: 5, In: 4, Name: "vm-start", Start: ms(215), Took: ms(300)},
				{N: 6, In: 4, Name: "guest-ready", Start: ms(520), Took: ms(1390)},
				{N: 7, Name: "init", Start: ms(1500), Took: ms(400), Claimed: true},
				{N: 8, Name: "kernel", Start: ms(800), Took: ms(700), Claimed: true},
				{N: 9, Name: "modules", Start: ms(1510), Took: ms(100), Claimed: true},
				{N: 10, In: 1, Name: "create-sandbox", Start: ms(1920), Took: ms(80)},
				{N: 11, Name: "create", Start: ms(9000), Took: ms(500), Attrs: map[string]string{"container": "app"}},
				{N: 12, Name: "start", Start: ms(9600), Took: ms(40), Attrs: map[string]string{"container": "app"}},
			},
		},
		"failed.txt": {
			Name: "web", Namespace: "default", ID: "3f2a9c0d1e", Began: began, Lost: 3,
			Steps: []Entry{
				{N: 1, Name: "sandbox", Took: ms(700), Error: "starting the VM: " + strings.Repeat("the kernel is not there ", 6)},
				{N: 2, In: 1, Name: "network", Start: ms(10), Took: ms(200)},
				{N: 3, In: 1, Name: "vm-start", Start: ms(215), Took: ms(480), Error: "the kernel is not there"},
				{N: 4, In: 1, Name: "a name that is much longer than the column for names", Start: ms(300), Open: true},
			},
		},
		"empty.txt": {Name: "web", Began: began},
	} {
		var out strings.Builder
		if err := tr.Print(&out); err != nil {
			t.Fatal(err)
		}
		golden(t, name, out.String())
		for l := range strings.Lines(out.String()) {
			if len(l) > pageWidth+1 {
				t.Errorf("%s: %d columns: %s", name, len(l)-1, l)
			}
		}
	}
}

func TestClock(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.000s", ms(1234): "1.234s", 999 * time.Second: "999.000s", time.Hour: "1h00m00s", 99*time.Hour + 59*time.Minute: "99h59m00s",
		1 << 62: "1281023h", 1<<63 - 1: "2562047h",
	} {
		if got := clock(d); got != want || len(got) > timeColumn {
			t.Errorf("%d is %q, want %q", d, got, want)
		}
	}
}
