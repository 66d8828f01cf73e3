package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

func open(t *testing.T, path string) *Bolt {
	t.Helper()
	b, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestStore(t *testing.T) {
	b, ctx := open(t, t.TempDir()+"/s.db"), t.Context()
	if _, err := b.Get(ctx, KBS, "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("absent key: %v", err)
	}
	if err := b.Put(ctx, KBS, map[string][]byte{"a": []byte("1"), "b": []byte("2")}); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(ctx, KBS, map[string][]byte{"c": []byte("3"), "": []byte("4")}); err == nil {
		t.Error("an empty key is taken")
	}
	if _, err := b.Get(ctx, KBS, "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("half of a refused write stayed: %v", err)
	}
	if made, err := b.PutNew(ctx, KBS, "a", []byte("9")); made || err != nil {
		t.Errorf("PutNew over a key: %v, %v", made, err)
	}
	if v, err := b.Get(ctx, KBS, "a"); err != nil || string(v) != "1" {
		t.Errorf("a = %q, %v", v, err)
	}
	if err := b.Delete(ctx, KBS, "a"); err != nil {
		t.Error(err)
	}
	if err := b.Delete(ctx, KBS, "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second delete: %v", err)
	}
	if err := b.Put(ctx, "nowhere", map[string][]byte{"a": nil}); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("unknown namespace: %v", err)
	}
}

func TestAppendIsBounded(t *testing.T) {
	b, ctx := open(t, t.TempDir()+"/s.db"), t.Context()
	for i := range 10 {
		if err := b.Append(ctx, Decisions, fmt.Sprintf("%02d", i), []byte("x"), 3); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Append(ctx, Decisions, "09", []byte("again"), 3); err != nil {
		t.Fatal(err)
	}
	var keys []string
	if err := b.Each(ctx, Decisions, func(k string, _ []byte) error { keys = append(keys, k); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(keys, " "); got != "07 08 09" {
		t.Errorf("kept %s, want 07 08 09", got)
	}
}

const childEnv = "CLOISTER_STORE_TEST_CHILD"

// TestKill writes from another process that is killed at a random moment: what it reported as written is there.
func TestKill(t *testing.T) {
	if path := os.Getenv(childEnv); path != "" {
		writeForever(path)
		return
	}
	path := t.TempDir() + "/s.db"
	next := 0
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), childEnv+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := -1
		for last < next+20 {
			var n int
			if _, err := fmt.Fscanln(out, &n); err != nil {
				t.Fatalf("reading from the writer: %v", err)
			}
			last = n
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the writer was not killed")
		}
		b, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range last + 1 {
			key := fmt.Sprintf("%06d", i)
			if v, err := b.Get(t.Context(), KBS, key); err != nil || string(v) != strings.Repeat(key, 100) {
				t.Fatalf("value %d is lost or damaged: %v", i, err)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		next = last + 1
	}
}

func writeForever(path string) {
	b, err := Open(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		key := fmt.Sprintf("%06d", i)
		if err := b.Put(context.Background(), KBS, map[string][]byte{key: []byte(strings.Repeat(key, 100))}); err != nil {
			os.Exit(1)
		}
		fmt.Println(strconv.Itoa(i))
	}
}

// TestLimitText: a bound that is none is not told as 0, which would read as "nothing is allowed".
func TestLimitText(t *testing.T) {
	for want, l := range map[string]Limit{
		"any number": {}, "2 entries": {Entries: 2}, "10 bytes": {Bytes: 10}, "2 entries of 10 bytes": {Entries: 2, Bytes: 10},
	} {
		if got := l.String(); got != want {
			t.Errorf("%+v is told as %q, want %q", l, got, want)
		}
	}
}
