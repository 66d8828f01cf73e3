package collateral

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestSurvivesRestart(t *testing.T) {
	dir, a, now := t.TempDir(), newAuthority(t), newClock()
	c := open(t, Options{Dir: dir, Now: now.now}, &fake{name: "A", do: always(tcbInfo(start0, 100*time.Hour), a.pem)})
	was := get(t, c, tcbKey)
	c.Close()
	down := &fake{name: "A", do: fails(errors.New("down"))}
	again := open(t, Options{Dir: dir, Now: now.now}, down)
	is := get(t, again, tcbKey)
	if !bytes.Equal(is.Data, was.Data) || !bytes.Equal(is.Chain, was.Chain) || is.Source != "A" || !is.Until.Equal(was.Until) ||
		!is.Fetched.Equal(was.Fetched) || !is.Refresh.Equal(was.Refresh) {
		t.Errorf("got %+v, want %+v", is, was)
	}
	if down.called() != 0 {
		t.Error("a source was asked for what is on disk")
	}
	if l := again.List(); len(l) != 1 || l[0].Key != tcbKey {
		t.Errorf("listed: %v", l)
	}
}

// TestDamagedFiles: whatever is in the folder, what is not whole is not served, and the document is fetched anew.
func TestDamagedFiles(t *testing.T) {
	a := newAuthority(t)
	data := a.crl(t, start0, 100*time.Hour)
	fresh := t.TempDir()
	c := open(t, Options{Dir: fresh, Now: newClock().now}, &fake{name: "A", do: always(data, nil)})
	get(t, c, crlKey)
	name := filepath.Base(c.disk.path(crlKey))
	whole, err := os.ReadFile(filepath.Join(fresh, name))
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, content []byte) {
		t.Helper()
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
		src := &fake{name: "A", do: always(data, nil)}
		c := open(t, Options{Dir: dir, Now: newClock().now}, src)
		if it := get(t, c, crlKey); !bytes.Equal(it.Data, data) || src.called() != 1 {
			t.Errorf("%s: served from disk", what)
		}
	}
	for i := 0; i < len(whole); i += 7 {
		check(fmt.Sprintf("cut to %d bytes", i), whole[:i])
	}
	body := bytes.IndexByte(whole, '\n')
	for i := body; i < len(whole); i += 11 {
		b := bytes.Clone(whole)
		b[i] ^= 1
		check(fmt.Sprintf("bit of byte %d", i), b)
	}
	check("one byte more", append(bytes.Clone(whole), 0))
	check("another key's", bytes.Replace(whole, []byte("Milan/vcek"), []byte("Genoa/vcek"), 1))
	check("another version", bytes.Replace(whole, []byte(`"version":1`), []byte(`"version":2`), 1))
	check("negative size", bytes.Replace(whole, []byte(`"chain":0`), []byte(`"chain":-1`), 1))
}

func TestHeaderCannotStretchTime(t *testing.T) {
	dir, a, now := t.TempDir(), newAuthority(t), newClock()
	c := open(t, Options{Dir: dir, Now: now.now}, &fake{name: "A", do: always(a.crl(t, start0, 100*time.Hour), nil)})
	get(t, c, crlKey)
	c.Close()
	name := c.disk.path(crlKey)
	text, _ := os.ReadFile(name)
	text = bytes.Replace(text, []byte(`"refresh":"2026`), []byte(`"refresh":"2099`), 1)
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	items, _, err := ReadDir(dir)
	if err != nil || len(items) != 1 || items[0].Refresh.Year() != 2026 {
		t.Errorf("got %+v, %v", items, err)
	}
}

func TestHalfWrittenFiles(t *testing.T) {
	dir := t.TempDir()
	old, young := filepath.Join(dir, ".amd-crl-00.item.1"), filepath.Join(dir, ".amd-crl-00.item.2")
	for _, f := range []string{old, young} {
		if err := os.WriteFile(f, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * oldTemp)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	if items, damaged, err := ReadDir(dir); err != nil || len(items) != 0 || damaged != 0 {
		t.Errorf("listed %v, %d damaged, %v", items, damaged, err)
	}
	if _, err := os.Stat(old); err != nil {
		t.Error("listing removed a file")
	}
	open(t, Options{Dir: dir})
	if _, err := os.Stat(old); err == nil {
		t.Error("an old half-written file stayed")
	}
	if _, err := os.Stat(young); err != nil {
		t.Error("a file that another process may be writing was removed")
	}
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	full := func(name string, data []byte) error {
		return fmt.Errorf("writing %s: %w", name, syscall.ENOSPC)
	}
	src := &fake{name: "A", do: always(rimDoc, nil)}
	c := open(t, Options{Dir: dir, Now: newClock().now, write: full}, src)
	for range 3 {
		if it := get(t, c, rimKey); it.Outage != nil {
			t.Errorf("outage %v", it.Outage)
		}
	}
	if s := c.Stats(); src.called() != 1 || s.DiskErrors != 1 || s.Entries != 1 {
		t.Errorf("asked %d times, counters %+v", src.called(), s)
	}
	if _, err := c.Put(Item{Key: Key{Kind: RIM, Name: "x"}, Data: rimDoc}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("an import onto a full disk: %v", err)
	}
}

// TestImportReachesRunningCache: another process puts a document into the folder.
func TestImportReachesRunningCache(t *testing.T) {
	dir, a, now := t.TempDir(), newAuthority(t), newClock()
	src := &fake{name: "A", do: fails(ErrNotFound)}
	for _, offline := range []bool{false, true} {
		broker := open(t, Options{Dir: dir, Now: now.now, Offline: offline}, src)
		if _, err := broker.Get(context.Background(), Query{Key: crlKey}); err == nil && !offline {
			t.Fatal("got something out of nothing")
		}
		issued := now.now()
		cli := open(t, Options{Dir: dir, Now: now.now, Offline: true})
		if ok, err := cli.Put(Item{Key: crlKey, Data: a.crl(t, issued, 100*time.Hour), Source: "bundle"}); !ok || err != nil {
			t.Fatalf("import: %v, %v", ok, err)
		}
		if it := get(t, broker, crlKey); !it.Issued.Equal(issued) {
			t.Errorf("offline %v: the broker has the list of %s, %s was imported", offline, it.Issued, issued)
		}
		now.add(time.Hour)
	}
}

func TestPut(t *testing.T) {
	a, now := newAuthority(t), newClock()
	c := open(t, Options{Now: now.now})
	put := func(data []byte, want bool, says string) {
		t.Helper()
		ok, err := c.Put(Item{Key: crlKey, Data: data})
		if ok != want || (says == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("taken %v, error %v; want %v, %q", ok, err, want, says)
		}
	}
	put([]byte("x"), false, "expected a revocation list")
	put(a.crl(t, start0.Add(-10*time.Hour), time.Hour), false, "it ended 2026-03-01T03:00:00Z")
	put(a.crl(t, start0, 100*time.Hour), true, "")
	put(a.crl(t, start0.Add(-time.Hour), 100*time.Hour), false, "")
	put(a.crl(t, start0.Add(time.Minute), 100*time.Hour), true, "")
}

// TestKilledWhileWriting kills a process that writes entries without pause, again and again: no file under an entry's name is ever
// incomplete.
func TestKilledWhileWriting(t *testing.T) {
	if dir := os.Getenv("COLLATERAL_TEST_WRITE"); dir != "" {
		d, err := openDisk(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			data := append(bytes.Clone(rimDoc), bytes.Repeat([]byte{byte(i)}, 256<<10)...)
			it := &Item{Key: Key{Kind: RIM, Name: fmt.Sprint("id", i%3)}, Data: data}
			if err := d.write(it); err != nil {
				t.Fatal(err)
			}
			fmt.Println("written")
		}
	}
	dir := t.TempDir()
	for i := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWhileWriting$")
		cmd.Env = append(os.Environ(), "COLLATERAL_TEST_WRITE="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for range i + 1 {
			if !lines.Scan() {
				t.Fatalf("the writer ended by itself: %v", lines.Err())
			}
		}
		// The next write has begun. Where in it the kill falls is chance: that is the point.
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if _, damaged, err := ReadDir(dir); err != nil || damaged != 0 {
			t.Fatalf("after kill %d: %d damaged files, %v", i, damaged, err)
		}
	}
	if items, _, _ := ReadDir(dir); len(items) == 0 {
		t.Error("nothing was written at all")
	}
}

func FuzzDecodeItem(f *testing.F) {
	sum := digest(rimDoc)
	f.Add(fmt.Appendf(nil, "{\"version\":1,\"kind\":\"nvidia-rim\",\"name\":\"x\",\"data\":%d,\"sha256\":%q}\n%s", len(rimDoc), sum, rimDoc))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if it, err := decodeItem(raw); err == nil && it.Key.Validate() != nil {
			t.Errorf("an item with the key %q", it.Key)
		}
	})
}
