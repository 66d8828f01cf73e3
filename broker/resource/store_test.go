package resource

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/store"
)

var start = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

type bench struct {
	*Store
	db  *store.Bolt
	key *seal.Key
}

func open(t *testing.T, c Config) bench {
	t.Helper()
	db, err := store.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	key, err := seal.New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	var tick atomic.Int64
	s, err := OpenStore(db, key, c, func() time.Time { return start.Add(time.Duration(tick.Add(1)) * time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	return bench{s, db, key}
}

func path(t testing.TB, text string) Path {
	t.Helper()
	p, err := ParsePath(SplitPath(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (b bench) put(t *testing.T, name, secret string) {
	t.Helper()
	if err := b.Put(t.Context(), path(t, name), []byte(secret)); err != nil {
		t.Fatal(err)
	}
}

func TestVersionsAreKeptAndBounded(t *testing.T) {
	b := open(t, Config{OldVersions: 2})
	p := path(t, "default/key/1")
	for i := 1; i <= 5; i++ {
		v, err := b.PutVersion(t.Context(), p, fmt.Appendf(nil, "secret %d", i))
		if err != nil || v.Number != uint64(i) || v.Size != 8 || !v.Time.Equal(start.Add(time.Duration(i)*time.Second)) {
			t.Fatalf("put %d: %+v, %v", i, v, err)
		}
	}
	if got, err := b.Get(t.Context(), p); err != nil || string(got) != "secret 5" {
		t.Fatalf("newest: %q, %v", got, err)
	}
	for n, want := range map[uint64]string{0: "secret 5", 5: "secret 5", 4: "secret 4", 3: "secret 3"} {
		if got, v, err := b.GetVersion(t.Context(), p, n); err != nil || string(got) != want || n != 0 && v.Number != n {
			t.Errorf("version %d: %q %+v, %v", n, got, v, err)
		}
	}
	for _, n := range []uint64{1, 2, 6, 1 << 63} {
		if _, _, err := b.GetVersion(t.Context(), p, n); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("version %d: got %v, want not found", n, err)
		}
	}
	versions, err := b.Versions(t.Context(), p)
	if err != nil || len(versions) != 3 || versions[0].Number != 5 || versions[2].Number != 3 {
		t.Fatalf("versions: %+v, %v", versions, err)
	}
	if err := b.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.GetVersion(t.Context(), p, 4); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("an old version outlives its resource: %v", err)
	}
	if err := b.Delete(t.Context(), p); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("deleting twice: %v", err)
	}
}

func TestNothingIsStoredInTheClearAndNothingMoves(t *testing.T) {
	b := open(t, DefaultConfig())
	p, q := path(t, "default/key/1"), path(t, "default/key/2")
	b.put(t, p.String(), "a visible secret")
	b.put(t, p.String(), "another secret!!")
	raw, err := b.db.Get(t.Context(), store.Resources, p.String())
	if err != nil || bytes.Contains(raw, []byte("secret")) {
		t.Fatalf("the store shows a secret (%v)", err)
	}
	swap := func(change func(v []stored)) error {
		v, err := decode(bytes.Clone(raw))
		if err != nil {
			t.Fatal(err)
		}
		change(v)
		if err := b.db.Put(t.Context(), store.Resources, map[string][]byte{q.String(): encode(v), p.String(): encode(v)}); err != nil {
			t.Fatal(err)
		}
		_, err = b.Get(t.Context(), p)
		return err
	}
	if err := swap(func([]stored) {}); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	if _, err := b.Get(t.Context(), q); err == nil {
		t.Error("a record opens at another path")
	}
	for name, change := range map[string]func(v []stored){
		"an old version as the newest": func(v []stored) { v[0].sealed = v[1].sealed },
		"another time":                 func(v []stored) { v[0].Time = v[0].Time.Add(1) },
		"another number":               func(v []stored) { v[0].Number++ },
		"another size":                 func(v []stored) { v[0].Size++ },
		"a version without a size":     func(v []stored) { v[0].Size = -1 },
	} {
		if swap(change) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func TestValuesFromBeforeVersions(t *testing.T) {
	b := open(t, DefaultConfig())
	p := path(t, "default/key/1")
	sealed, err := b.key.Seal("resource:default/key/1", []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.db.Put(t.Context(), store.Resources, map[string][]byte{p.String(): sealed}); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Get(t.Context(), p); err != nil || string(got) != "old" {
		t.Fatalf("%q, %v", got, err)
	}
	v, err := b.PutVersion(t.Context(), p, []byte("newer"))
	if err != nil || v.Number != 2 {
		t.Fatalf("%+v, %v", v, err)
	}
	check := func(size int) {
		t.Helper()
		got, v, err := b.GetVersion(t.Context(), p, 1)
		if err != nil || string(got) != "old" || v.Size != size || !v.Time.IsZero() {
			t.Fatalf("%q %+v, %v", got, v, err)
		}
	}
	check(-1)
	if n, err := b.Reseal(t.Context()); err != nil || n != 1 {
		t.Fatalf("%d, %v", n, err)
	}
	check(3)
	if got, err := b.Get(t.Context(), p); err != nil || string(got) != "newer" {
		t.Fatalf("%q, %v", got, err)
	}
}

// ring opens with two keys and seals with the first, as during a rotation of the storage key.
type ring struct{ to, from *seal.Key }

func (r ring) Seal(place string, b []byte) ([]byte, error) { return r.to.Seal(place, b) }
func (r ring) Open(place string, b []byte) ([]byte, error) {
	if out, err := r.to.Open(place, b); err == nil {
		return out, nil
	}
	return r.from.Open(place, b)
}

func TestReseal(t *testing.T) {
	b := open(t, DefaultConfig())
	for i := range 6 {
		b.put(t, fmt.Sprintf("r/t/%d", i/2), fmt.Sprint("secret", i))
	}
	next, err := seal.New(bytes.Repeat([]byte{8}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := NewStore(b.db, ring{next, b.key}).Reseal(t.Context()); n != 3 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	after := NewStore(b.db, next)
	for i := range 6 {
		if got, _, err := after.GetVersion(t.Context(), path(t, fmt.Sprintf("r/t/%d", i/2)), uint64(i%2+1)); err != nil ||
			string(got) != fmt.Sprint("secret", i) {
			t.Errorf("%d: %q, %v", i, got, err)
		}
	}
	if _, err := b.Get(t.Context(), path(t, "r/t/0")); err == nil {
		t.Error("the old key still opens")
	}
}

func TestRotate(t *testing.T) {
	b := open(t, DefaultConfig())
	p := path(t, "default/key/1")
	if _, err := b.Rotate(t.Context(), p, 16); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("rotating what is not there: %v", err)
	}
	b.put(t, p.String(), strings.Repeat("x", 48))
	for i, size := range []int{0, 16} {
		v, err := b.Rotate(t.Context(), p, size)
		want := []int{48, 16}[i]
		if err != nil || v.Number != uint64(i+2) || v.Size != want {
			t.Fatalf("%+v, %v", v, err)
		}
		got, err := b.Get(t.Context(), p)
		if err != nil || len(got) != want || bytes.Count(got, []byte("x")) > want/2 {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	if got, _, err := b.GetVersion(t.Context(), p, 1); err != nil || string(got) != strings.Repeat("x", 48) {
		t.Fatalf("the first version: %q, %v", got, err)
	}
	b.put(t, p.String(), "")
	if _, err := b.Rotate(t.Context(), p, 0); err == nil {
		t.Error("an empty secret is rotated to an empty secret")
	}
	for _, size := range []int{-1, MaxSize + 1} {
		if _, err := b.Rotate(t.Context(), p, size); err == nil {
			t.Errorf("size %d is accepted", size)
		}
	}
}

func TestListNamesWithoutContents(t *testing.T) {
	b := open(t, DefaultConfig())
	for _, name := range []string{"a/k/1", "a/k/2", "a/l/1", "ab/k/1", "a-b/k/1", "z/k/1"} {
		b.put(t, name, "SECRET")
	}
	b.put(t, "a/k/1", "SECRET")
	for prefix, want := range map[string]string{
		"": "a-b/k/1 a/k/1 a/k/2 a/l/1 ab/k/1 z/k/1", "a": "a/k/1 a/k/2 a/l/1", "a/k": "a/k/1 a/k/2", "a/k/1": "a/k/1", "b": "",
	} {
		for _, limit := range []int{0, 1, 2} {
			var got []string
			for after := ""; ; {
				page, err := b.List(t.Context(), prefix, after, limit)
				if err != nil || limit > 0 && len(page) > limit {
					t.Fatalf("%q: %d, %v", prefix, len(page), err)
				}
				text, err := json.Marshal(page)
				if err != nil || bytes.Contains(text, []byte("SECRET")) {
					t.Fatalf("list %s, %v", text, err)
				}
				for _, i := range page {
					got = append(got, i.Path)
					after = i.Path
				}
				if len(page) == 0 || limit == 0 {
					break
				}
			}
			if s := strings.Join(got, " "); s != want {
				t.Errorf("prefix %q limit %d: got %q, want %q", prefix, limit, s, want)
			}
		}
	}
	list, err := b.List(t.Context(), "a/k/1", "", 0)
	if err != nil || len(list) != 1 || len(list[0].Versions) != 2 || list[0].Versions[0].Number != 2 || list[0].Versions[0].Size != 6 {
		t.Errorf("%+v, %v", list, err)
	}
	for _, prefix := range []string{"..", "a/", "/a", "a//k", "a/k/1/x", ".a", "a*"} {
		if _, err := b.List(t.Context(), prefix, "", 0); !errors.Is(err, ErrPath) {
			t.Errorf("prefix %q: got %v", prefix, err)
		}
	}
	if n, err := b.Count(t.Context()); n != 6 || err != nil {
		t.Errorf("count %d, %v", n, err)
	}
}

func TestPathTricks(t *testing.T) {
	long := strings.Repeat("a", maxSegment)
	for _, ok := range []string{"a/b/c", "a/b/c.d..e", "_/-/0", long + "/b/c"} {
		path(t, ok)
	}
	for _, bad := range []string{
		"", "a", "a/b", "a/b/c/d", "/a/b", "a//c", "a/b/", "../b/c", "a/../c", "a/b/..", "./b/c", ".a/b/c", "a/b/.c", "a b/c/d", "a/b/c\n",
		"a/b/c\x00", `a\b/c/d`, "a/b/%2e%2e", "ä/b/c", "a/b/c?x", "a#1@2/b/c", long + "a/b/c",
	} {
		if _, err := ParsePath(SplitPath(bad)); !errors.Is(err, ErrPath) {
			t.Errorf("%.40q: got %v, want ErrPath", bad, err)
		}
	}
}

func TestQuota(t *testing.T) {
	b := open(t, Config{OldVersions: 1, RepositoryBytes: 100, RepositoryResources: 3})
	put := func(name string, size int) error { return b.Put(t.Context(), path(t, name), make([]byte, size)) }
	want := func(got error, refused bool) {
		t.Helper()
		if refused != errors.Is(got, ErrQuota) || !refused && got != nil {
			t.Fatalf("got %v, want refused %v", got, refused)
		}
	}
	want(put("a/k/1", 40), false)
	want(put("a/k/2", 61), true)
	want(put("a/k/2", 30), false)
	want(put("a/k/1", 30), false) // 40 + 30 + 30: full
	want(put("a/k/2", 1), true)
	want(put("b/k/1", 100), false)
	want(put("a/k/1", 20), false) // 40 falls out
	want(put("a/k/3", 1), false)
	want(put("a/k/4", 1), true)
	if _, err := b.Rotate(t.Context(), path(t, "a/k/2"), 90); !errors.Is(err, ErrQuota) {
		t.Fatalf("rotation beyond the quota: %v", err)
	}
	if err := b.Delete(t.Context(), path(t, "a/k/2")); err != nil {
		t.Fatal(err)
	}
	want(put("a/k/4", 1), false)
	// A store that is opened again has counted the same, and one with a smaller quota lets a repository shrink.
	again, err := OpenStore(b.db, b.key, Config{RepositoryBytes: 10}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	want(again.Put(t.Context(), path(t, "a/k/1"), make([]byte, 15)), false)
	want(again.Put(t.Context(), path(t, "a/k/3"), make([]byte, 2)), true)
	for _, c := range []Config{{OldVersions: -1}, {OldVersions: 101}, {RepositoryBytes: -1}, {RepositoryResources: -1}} {
		if _, err := OpenStore(b.db, b.key, c, time.Now); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

func TestQuotaRace(t *testing.T) {
	b := open(t, Config{OldVersions: 0, RepositoryBytes: 200, RepositoryResources: 15})
	race(t, b.Store)
	check(t, b.Store, 15)
}

func TestSeveralBrokersLoseNoVersion(t *testing.T) {
	b := open(t, Config{OldVersions: 100})
	var wg sync.WaitGroup
	for i := range 3 {
		s, err := OpenStore(b.db, b.key, Config{OldVersions: 100, RepositoryBytes: 1 << 20, Shared: true}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for range 12 {
				if err := s.Put(t.Context(), path(t, "a/b/c"), fmt.Append(nil, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if versions, err := b.Versions(t.Context(), path(t, "a/b/c")); err != nil || len(versions) != 36 || versions[0].Number != 36 {
		t.Errorf("%d versions of 36, %v", len(versions), err)
	}
}

func TestSharedQuotaSeesOthers(t *testing.T) {
	b := open(t, DefaultConfig())
	c := Config{RepositoryResources: 2, Shared: true}
	for i, want := range []error{nil, nil, ErrQuota} {
		one, err := OpenStore(b.db, b.key, c, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if i == 2 { // has counted before the others wrote
			one = b.Store
			one.cfg, one.used = c, map[string]usage{}
		}
		if err := one.Put(t.Context(), path(t, fmt.Sprintf("a/b/%d", i)), nil); !errors.Is(err, want) {
			t.Errorf("%d: got %v, want %v", i, err, want)
		}
	}
}

func TestBigVersionsFitIntoOneRecord(t *testing.T) {
	b := open(t, DefaultConfig())
	p := path(t, "a/b/c")
	for i := range 3 {
		if v, err := b.PutVersion(t.Context(), p, make([]byte, MaxSize-i)); err != nil || v.Number != uint64(i+1) {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	if versions, err := b.Versions(t.Context(), p); err != nil || len(versions) != 1 || versions[0].Number != 3 {
		t.Errorf("%+v, %v", versions, err)
	}
}

func race(t *testing.T, s *Store) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			err := s.Put(t.Context(), path(t, fmt.Sprintf("a/k/%d", i)), make([]byte, 12))
			if err != nil && !errors.Is(err, ErrQuota) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func check(t *testing.T, s *Store, want int) {
	t.Helper()
	if n, err := s.Count(t.Context()); n != want || err != nil {
		t.Fatalf("%d resources got in, want %d (%v)", n, want, err)
	}
}

func TestConcurrentWritesLoseNoVersion(t *testing.T) {
	b := open(t, Config{OldVersions: 100})
	p := path(t, "a/b/c")
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if err := b.Put(t.Context(), p, fmt.Append(nil, i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	versions, err := b.Versions(t.Context(), p)
	if err != nil || len(versions) != 40 {
		t.Fatalf("%d versions, %v", len(versions), err)
	}
	seen := map[string]bool{}
	for _, v := range versions {
		got, _, err := b.GetVersion(t.Context(), p, v.Number)
		if err != nil || seen[string(got)] {
			t.Fatalf("version %d: %q, %v", v.Number, got, err)
		}
		seen[string(got)] = true
	}
}

func TestTooBigAndTooLate(t *testing.T) {
	b := open(t, DefaultConfig())
	p := path(t, "a/b/c")
	if b.Put(t.Context(), p, make([]byte, MaxSize+1)) == nil {
		t.Error("a secret above the limit is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Put(ctx, p, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
