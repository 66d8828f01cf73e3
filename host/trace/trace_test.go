package trace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/needs"
)

func newFile(t *testing.T, change func(*Config)) (*Recorder, string) {
	t.Helper()
	c := Config{File: filepath.Join(t.TempDir(), FileName), Name: "web", Namespace: "default", ID: "0123"}
	if change != nil {
		change(&c)
	}
	r := New(c)
	if r == nil {
		t.Fatal("nothing is recorded")
	}
	t.Cleanup(func() { r.Close(context.Background()) })
	return r, c.File
}

func load(t *testing.T, file string) *Trace {
	t.Helper()
	tr, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestStepsAreNested(t *testing.T) {
	r, file := newFile(t, func(c *Config) { c.Attrs = []Attr{String("vmm", "qemu")} })
	ctx, endBoot := r.Step(t.Context(), "sandbox")
	_, endNet := Step(ctx, "network", String("model", "tc"))
	_, endVM := Step(ctx, "vm-start")
	if got := load(t, file); len(got.Steps) != 3 || !got.Steps[2].Open || got.Steps[2].In != 1 {
		t.Errorf("while it runs: %+v", got.Steps)
	}
	endNet(nil)
	endVM(errors.New("no kernel\x1b[2J\nat all"))
	endVM(nil) // the first one counts
	endBoot(nil)
	r.Past(ctx, "before", time.Now().Add(-time.Hour), time.Now(), nil)
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, late := r.Step(ctx, "late") // and does nothing
	late(nil)
	got := load(t, file)
	if got.Name != "web" || got.Namespace != "default" || got.ID != "0123" || got.Attrs["vmm"] != "qemu" || got.TraceID != "" {
		t.Errorf("the head is %+v", got)
	}
	if len(got.Steps) != 4 {
		t.Fatalf("the steps are %+v", got.Steps)
	}
	for i, want := range []struct {
		name, failed string
		in           int
	}{{"sandbox", "", 0}, {"network", "", 1}, {"vm-start", "no kernel at all", 1}, {"before", "", 1}} {
		if s := got.Steps[i]; s.Name != want.name || s.Error != want.failed || s.In != want.in || s.Open || s.N != i+1 {
			t.Errorf("step %d is %+v, want %+v", i, s, want)
		}
	}
	if got.Steps[1].Attrs["model"] != "tc" || got.Steps[3].Start != 0 {
		t.Errorf("attributes %v, start of what began before %v", got.Steps[1].Attrs, got.Steps[3].Start)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestKilled cuts the file after every byte, as a writer that is killed leaves it.
func TestKilled(t *testing.T) {
	r, file := newFile(t, nil)
	ctx, end := r.Step(t.Context(), "sandbox")
	_, inner := Step(ctx, "vm-start")
	inner(errors.New("x"))
	end(nil)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head := strings.Index(string(whole), "\n") + 1
	for n := range whole {
		got, err := Parse(strings.NewReader(string(whole[:n])))
		if n < head {
			if err == nil {
				t.Errorf("%d bytes: half a head was accepted", n)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if err := got.Print(io.Discard); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFileIsBounded(t *testing.T) {
	r, file := newFile(t, func(c *Config) { c.Limit = 8 << 10 })
	ctx, end := r.Step(t.Context(), "sandbox")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			_, end := Step(ctx, fmt.Sprint("step ", i), String(strings.Repeat("k", 999), strings.Repeat("v", 999)))
			end(errors.New(strings.Repeat(`"`, 9999)))
		})
	}
	wg.Wait()
	end(errors.New("the end of the first is kept room for"))
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Size() > 8<<10 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
	got := load(t, file)
	if got.Lost == 0 || got.Lost+len(got.Steps) != 201 || got.Steps[0].Open {
		t.Errorf("%d steps and %d lost; the first is %+v", len(got.Steps), got.Lost, got.Steps[0])
	}
}

// TestNoFile has a place where no file can be: the sandbox goes on.
func TestNoFile(t *testing.T) {
	r := New(Config{File: filepath.Join(t.TempDir(), "none", "x"), ID: "0123"})
	ctx, end := r.Step(t.Context(), "sandbox")
	_, inner := Step(ctx, "inner")
	inner(nil)
	end(nil)
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "0123") {
		t.Errorf("the error is %v", err)
	}
	if err := r.Close(t.Context()); err == nil {
		t.Error("closing says nothing")
	}
}

// TestFullDisk writes to a device that is full.
func TestFullDisk(t *testing.T) {
	needs.Files(t, "/dev/full")
	r := New(Config{File: "/dev/full"})
	for range 10 {
		_, end := r.Step(t.Context(), "sandbox")
		end(nil)
	}
	if r.Err() == nil {
		t.Error("no error")
	}
}

func TestOffCostsNothing(t *testing.T) {
	r := New(Config{Name: "web"})
	if r != nil {
		t.Fatal("something is recorded")
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		c, end := r.Step(ctx, "sandbox")
		_, inner := Step(c, "inner")
		inner(nil)
		end(nil)
		r.Guest("kernel", time.Time{}, 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	r.Past(ctx, "x", time.Now(), time.Now(), nil)
	if _, err := io.WriteString(r.GuestLog(time.Now()), "x"); err != nil || r.Close(ctx) != nil || r.Err() != nil || Traceparent(ctx) != "" {
		t.Error("nil does something")
	}
}

func BenchmarkStep(b *testing.B) {
	r := New(Config{File: filepath.Join(b.TempDir(), FileName), Limit: 1 << 30})
	defer r.Close(context.Background())
	for b.Loop() {
		_, end := r.Step(b.Context(), "sandbox")
		end(nil)
	}
}

func TestGuestIsNotTrusted(t *testing.T) {
	r, file := newFile(t, nil)
	_, end := r.Step(t.Context(), "guest-ready")
	now := time.Now()
	for _, name := range []string{"", "UPPER", "a\x1b[2J", strings.Repeat("x", 99), "-dash", "a\nb"} {
		r.Guest(name, now, 0)
	}
	r.Guest("past", now.Add(-1<<62), 1<<62)
	r.Guest("future", now.Add(1<<62), 1<<62)
	r.Guest("negative", now, -5)
	for range 1000 {
		r.Guest("flood", now, 0)
	}
	end(nil)
	over := time.Since(r.began)
	got := load(t, file)
	if len(got.Steps) != maxClaims+1 {
		t.Errorf("%d steps", len(got.Steps))
	}
	for _, s := range got.Steps[1:] {
		if !s.Claimed || s.Start < 0 || s.Took < 0 || s.Start+s.Took > over {
			t.Errorf("%+v, after %v", s, over)
		}
	}
}

const guestText = `{"ts":"2001-01-01T00:00:01.1Z","level":"info","msg":"boot step done","name":"cloister-guest","step":"modules","took":100000000}
{"ts":"2001-01-01T00:00:01.2Z","level":"info","msg":"something else","step":"x"}
not json "boot step done"
{"ts":"2001-01-01T00:00:01.4Z","level":"info","msg":"boot step done","name":"cloister-guest","step":"network","took":200000000}
{"ts":"2001-01-01T00:00:01.5Z","level":"info","msg":"guest ready","version":"v","kernel":700000000,"took":500000000}
{"ts":"2001-01-01T00:00:01.6Z","level":"info","msg":"boot step done","step":"late","took":1}
`

func TestGuestLog(t *testing.T) {
	ready := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	got := ReadGuestLog(strings.NewReader(guestText), ready)
	want := []Claim{
		{"kernel", ready.Add(-1200 * time.Millisecond), 700 * time.Millisecond},
		{"init", ready.Add(-500 * time.Millisecond), 500 * time.Millisecond},
		{"modules", ready.Add(-500 * time.Millisecond), 100 * time.Millisecond},
		{"network", ready.Add(-300 * time.Millisecond), 200 * time.Millisecond},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	// The same in pieces, through a recorder.
	r, file := newFile(t, func(c *Config) { c.Began = time.Now().Add(-time.Minute) })
	w := r.GuestLog(time.Now())
	for i := range len(guestText) {
		if n, err := w.Write([]byte{guestText[i]}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := load(t, file); len(got.Steps) != 4 || got.Steps[0].Took != 700*time.Millisecond {
		t.Errorf("%+v", got.Steps)
	}
}

// TestGuestLogFlood has a guest that never says that it is ready.
func TestGuestLogFlood(t *testing.T) {
	g := &guestLog{emit: func(Claim) { t.Error("a step without an end of the boot") }}
	flood := []byte(strings.Repeat("x", 64<<10))
	for range 64 {
		if n, err := g.Write(flood); n != len(flood) || err != nil {
			t.Fatal(n, err)
		}
		if cap(g.line) > 2*maxGuestLine {
			t.Fatalf("%d bytes are kept", cap(g.line))
		}
	}
	if !g.done {
		t.Error("it still reads")
	}
}

func TestKeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "traces")
	for i := range 5 {
		_, file := newFile(t, nil)
		at := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
		if err := Keep(file, dir, fmt.Sprint("id", i), 3); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 3 || filepath.Base(left[0]) != "id2.jsonl" {
		t.Errorf("left are %v, %v", left, err)
	}
	if err := Keep(filepath.Join(dir, "none"), dir, "x", 3); err != nil {
		t.Error(err)
	}
	if err := Keep(filepath.Join(dir, "none"), dir, "..", 3); err == nil {
		t.Error("an id that leads out was accepted")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"trace":1,"name":"web","began":"2026-01-01T00:00:00Z"}` + "\n" + `{"n":1,"step":"a","at":5}` + "\n" +
		`{"n":2,"in":1,"step":"kernel","at":6,"end":7,"claimed":true}` + "\n" + `{"n":1,"end":9,"error":"x"}` + "\n"))
	f.Add([]byte(`{"trace":1,"began":"2026-01-01T00:00:00Z"}` + "\n" + `{"n":1,"step":"\u001b","at":9223372036854775807}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tr, err := Parse(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		var out strings.Builder
		if err := tr.Print(&out); err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(out.String()) {
			if n := len([]rune(strings.TrimSuffix(l, "\n"))); n > pageWidth {
				t.Errorf("%d columns: %q", n, l)
			}
			if strings.ContainsAny(l, "\x1b\r\a") {
				t.Errorf("%q", l)
			}
		}
	})
}
