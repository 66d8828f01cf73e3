package seal

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/store"
)

func TestBrokersAgree(t *testing.T) {
	m := newMemory()
	w := newKEK(t, "a")
	var wg sync.WaitGroup
	brokers := make([]*Keys, 8)
	for i := range brokers {
		wg.Go(func() {
			k, err := Open(t.Context(), source(m, w))
			if err != nil {
				t.Error(err)
				return
			}
			brokers[i] = k
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	one := mustSeal(t, brokers[0], "one")
	for _, k := range brokers {
		reads(t, k, one, "one")
	}
	a, b := brokers[0], brokers[1]
	before := a.ID()
	id, err := a.Rotate(t.Context())
	if err != nil || id == before || a.ID() != id {
		t.Fatal(id, err)
	}
	two := mustSeal(t, a, "two")
	old := mustSeal(t, b, "from the old key") // it has not looked yet
	reads(t, b, two, "two")
	if b.ID() != id {
		t.Error("a broker that met the new key still seals with the old one")
	}
	reads(t, a, old, "from the old key")
	c := brokers[2]
	m.advance(2 * time.Minute)
	if sealed := mustSeal(t, c, "x"); !bytes.Equal(sealed[1:1+idSize], two[1:1+idSize]) {
		t.Error("a broker seals with the old key after it should have looked")
	}

	reseal := 0
	do := func(context.Context) error { reseal++; return nil }
	if _, err := a.Retire(t.Context(), do); !errors.Is(err, ErrEarly) || reseal != 0 {
		t.Errorf("too early: %v", err)
	}
	m.advance(grace)
	if _, err := a.Retire(t.Context(), func(context.Context) error { return errors.New("disk full") }); err == nil || len(a.IDs()) != 2 {
		t.Errorf("without sealing anew: %v, keys %v", err, a.IDs())
	}
	gone, err := a.Retire(t.Context(), do)
	if err != nil || len(gone) != 1 || gone[0] != before || reseal != 1 || len(a.IDs()) != 1 {
		t.Errorf("%v, %v", gone, err)
	}
	if _, err := a.Open("here", one); err == nil || !strings.Contains(err.Error(), before) {
		t.Errorf("with a key that is gone: %v", err)
	}
	if gone, err := a.Retire(t.Context(), do); gone != nil || err != nil {
		t.Errorf("nothing to do: %v, %v", gone, err)
	}
	if _, changed, err := b.Reseal("here", two); changed || err != nil {
		t.Errorf("%v, %v", changed, err)
	}
}

func TestRotateAtTheSameMoment(t *testing.T) {
	m := newMemory()
	w := newKEK(t, "a")
	brokers := []*Keys{mustOpen(t, source(m, w)), mustOpen(t, source(m, w)), mustOpen(t, source(m, w))}
	var wg sync.WaitGroup
	for _, k := range brokers {
		wg.Go(func() {
			for range 4 {
				if _, err := k.Rotate(t.Context()); err != nil {
					t.Error(err)
				}
				sealed, err := k.Seal("here", []byte("x"))
				if err != nil {
					t.Error(err)
					continue
				}
				for _, other := range brokers {
					if _, err := other.Open("here", sealed); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	m.advance(2 * time.Minute)
	for _, k := range brokers {
		mustSeal(t, k, "x")
		if k.ID() != brokers[0].ID() {
			t.Errorf("current keys %s and %s", k.ID(), brokers[0].ID())
		}
	}
}

func TestCrashes(t *testing.T) {
	w := newKEK(t, "a")
	for _, c := range []struct {
		lost, refuse bool
	}{{true, false}, {false, true}} {
		m := newMemory()
		m.lost, m.refuse = c.lost, c.refuse
		if _, err := Open(t.Context(), source(m, w)); err == nil {
			t.Error("a write that failed is taken for one that did not")
		}
		m.lost, m.refuse = false, false
		k := mustOpen(t, source(m, w)) // whatever became of it
		before, sealed := k.ID(), mustSeal(t, k, "x")
		m.set(func() { m.lost, m.refuse = c.lost, c.refuse })
		id, err := k.Rotate(t.Context())
		if c.lost && (err != nil || id == before) || c.refuse && (err == nil || k.ID() != before) {
			t.Errorf("%+v: %q, %v", c, id, err)
		}
		m.set(func() { m.lost, m.refuse = false, false })
		again := mustOpen(t, source(m, w))
		reads(t, again, sealed, "x")
		if again.ID() != k.ID() {
			t.Errorf("after a start: %s, want %s", again.ID(), k.ID())
		}
	}
}

func TestServiceOutOfOrder(t *testing.T) {
	m := newMemory()
	w := newKEK(t, "a")
	k := mustOpen(t, source(m, w))
	sealed, before := mustSeal(t, k, "x"), m.version
	w.wrong = true
	if _, err := k.Rotate(t.Context()); err == nil || m.version != before {
		t.Errorf("a service that unwraps something else: %v", err)
	}
	if _, err := k.Rewrap(t.Context()); err == nil || m.version != before {
		t.Errorf("a service that unwraps something else: %v", err)
	}
	w.wrong, w.fail = false, errors.New("the service is down")
	if _, err := k.Rotate(t.Context()); !errors.Is(err, w.fail) || m.version != before {
		t.Errorf("a service that is down: %v", err)
	}
	asked := w.asked
	m.advance(10 * time.Minute)
	reads(t, k, sealed, "x")
	mustSeal(t, k, "y")
	if w.asked != asked {
		t.Error("the service is asked for keys that are known")
	}
	if _, err := Open(t.Context(), source(m, w)); !errors.Is(err, w.fail) {
		t.Errorf("a start without the service: %v", err)
	}
}

func TestDatabaseOutage(t *testing.T) {
	m := newMemory()
	k := mustOpen(t, source(m, newKEK(t, "a")))
	sealed := mustSeal(t, k, "x")
	m.set(func() { m.down = errors.New("no database") })
	m.advance(staleAfter - time.Second)
	mustSeal(t, k, "y")
	m.advance(time.Second)
	if _, err := k.Seal("here", nil); !errors.Is(err, m.down) {
		t.Errorf("sealing with a key that may be gone: %v", err)
	}
	reads(t, k, sealed, "x")
	m.set(func() { m.down = nil })
	mustSeal(t, k, "z")
}

func TestOldRecordIsRefused(t *testing.T) {
	m := newMemory()
	k := mustOpen(t, source(m, newKEK(t, "a")))
	old := bytes.Clone(m.value)
	if _, err := k.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.set(func() { m.value, m.version = old, m.version+1 })
	m.advance(10 * time.Minute)
	if _, err := k.Seal("here", nil); err == nil || !strings.Contains(err.Error(), "went back") {
		t.Errorf("the old record in its place: %v", err)
	}
}

func TestOtherService(t *testing.T) {
	m := newMemory()
	a, b := newKEK(t, "a"), newKEK(t, "b")
	k := mustOpen(t, source(m, a))
	sealed := mustSeal(t, k, "x")
	if _, err := Open(t.Context(), source(m, b)); err == nil || !strings.Contains(err.Error(), "test:a") {
		t.Errorf("without the service that wrapped: %v", err)
	}
	s := source(m, b)
	s.Previous = []Wrapper{a}
	next := mustOpen(t, s)
	if n, err := next.Rewrap(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	reads(t, mustOpen(t, source(m, b)), sealed, "x")
}

func TestRefusals(t *testing.T) {
	w := newKEK(t, "a")
	for name, change := range map[string]func(m *memory, s *Source){
		"no identity":      func(_ *memory, s *Source) { s.Identity = "" },
		"another identity": func(_ *memory, s *Source) { s.Identity = "test" },
		"the same, changed": func(m *memory, s *Source) {
			s.Identity = "test"
			m.value = bytes.Replace(m.value, []byte("prod"), []byte("test"), 1)
		},
		"gone":    func(m *memory, s *Source) { m.value, s.NoCreate = nil, true },
		"no JSON": func(m *memory, _ *Source) { m.value = []byte("x") },
		"another key": func(m *memory, _ *Source) {
			m.value = bytes.ReplaceAll(m.value, m.value[bytes.Index(m.value, []byte(`"current": "`))+12:][:16], []byte("0123456789abcdef"))
		},
		"absent old file": func(_ *memory, s *Source) { s.OldFiles = []string{"/absent"} },
	} {
		m := newMemory()
		mustOpen(t, source(m, w))
		s := source(m, w)
		change(m, &s)
		if _, err := Open(t.Context(), s); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
}

func TestChangeOverFromFile(t *testing.T) {
	path := t.TempDir() + "/store.key"
	plain, err := LoadRing(path)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := plain.Seal("here", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	m := newMemory()
	s := source(m, newKEK(t, "a"))
	s.OldFiles = []string{path}
	k := mustOpen(t, s)
	reads(t, k, sealed, "x")
	anew, changed, err := k.Reseal("here", sealed)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	s.OldFiles = nil
	reads(t, mustOpen(t, s), anew, "x")
}

func TestKeyStores(t *testing.T) {
	db, err := store.Open(t.TempDir() + "/s.db")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	path := t.TempDir() + "/store.keys"
	for name, keep := range map[string]KeyStore{"file": InFile(path, time.Now), "database": InDatabase(db)} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			if _, err := keep.Load(ctx); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("absent: %v", err)
			}
			var wg sync.WaitGroup
			s := Source{Identity: "prod", Keep: keep, Wrap: newKEK(t, "a"), Now: time.Now}
			ids := make([]string, 6)
			for i := range ids {
				wg.Go(func() {
					if k, err := Open(ctx, s); err == nil {
						ids[i] = k.ID()
					}
				})
			}
			wg.Wait()
			for _, id := range ids {
				if id == "" || id != ids[0] {
					t.Errorf("starts at the same moment have keys %v", ids)
				}
			}
			k := mustOpen(t, s)
			rec, err := keep.Load(ctx)
			if err != nil || time.Since(rec.Now).Abs() > time.Minute {
				t.Fatal(rec.Now, err)
			}
			if _, err := k.Rotate(ctx); err != nil {
				t.Fatal(err)
			}
			if err := keep.Swap(ctx, rec.Version, []byte("x")); !errors.Is(err, store.ErrChanged) {
				t.Errorf("over a change: %v", err)
			}
			if err := keep.Create(ctx, []byte("x")); !errors.Is(err, store.ErrExists) {
				t.Errorf("over a record: %v", err)
			}
			sealed := mustSeal(t, k, "x")
			if err := db.Put(ctx, store.Resources, map[string][]byte{"here": sealed}); err != nil {
				t.Fatal(err)
			}
			if _, err := k.Rotate(ctx); err != nil {
				t.Fatal(err)
			}
			n, err := ResealAll(ctx, db, store.Resources, k, func(string) (string, bool) { return "here", true })
			if n != 1 || err != nil {
				t.Errorf("%d sealed anew, %v", n, err)
			}
		})
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := InFile(path, time.Now).Load(t.Context()); err == nil || !strings.Contains(err.Error(), "0640") {
		t.Errorf("a file that others may read: %v", err)
	}
}

func FuzzDocument(f *testing.F) {
	m := newMemory()
	if _, err := Open(f.Context(), source(m, newKEK(f, "a"))); err != nil {
		f.Fatal(err)
	}
	f.Add(m.value)
	f.Add([]byte(`{"format":1,"identity":"a","current":"","keys":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := parseDocument(raw)
		if err != nil {
			return
		}
		out, err := d.encode()
		if err != nil {
			t.Fatalf("what was read is not written: %v", err)
		}
		if _, err := parseDocument(out); err != nil {
			t.Fatalf("what was written is not read: %v", err)
		}
	})
}
