package session_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/store/postgres"
	server "github.com/cloister/cloister/test/postgres"
)

func database(t *testing.T, dir string, port int) *postgres.Store {
	t.Helper()
	db, err := postgres.Open(t.Context(), postgres.Config{
		Host: dir, Port: port, Database: server.Database, User: server.User, PasswordFile: filepath.Join(dir, "password"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

type back interface {
	Load(ctx context.Context, ns, key string) (store.Entry, error)
	Create(ctx context.Context, ns, key string, value []byte, lifetime time.Duration, limit store.Limit) (store.Entry, error)
	CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, limit store.Limit) (int64, error)
	DeleteExpired(ctx context.Context, ns string) (int, error)
	Usage(ctx context.Context, ns string) (store.Usage, error)
}

func replica(t *testing.T, db back, o session.Options) *session.Shared {
	t.Helper()
	key, err := seal.New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	return session.NewShared(db, key, o)
}

func get(t *testing.T, m *session.Shared, id string) *session.Session {
	t.Helper()
	s, err := m.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, m *session.Shared) *session.Session {
	t.Helper()
	s, err := m.New(t.Context(), "tpm", "", "sha384", json.RawMessage(`{"a":"challenge-text"}`))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func token(text string) session.Func {
	return func(context.Context) (string, string, error) { return text, "id of " + text, nil }
}

func TestReplicas(t *testing.T) {
	srv := server.Start(t)
	dbA, dbB := database(t, srv.Dir, srv.Port), database(t, srv.Dir, srv.Port)
	a, b := replica(t, dbA, session.Options{}), replica(t, dbB, session.Options{})
	made := create(t, a)
	got := get(t, b, made.ID)
	if got.Nonce != made.Nonce || got.TEE != "tpm" || got.Hash != "sha384" || string(got.Challenge) != `{"a":"challenge-text"}` {
		t.Errorf("made %+v, got %+v", made, got)
	}
	if _, _, _, err := got.Attest(t.Context(), func(context.Context) (string, string, error) { return "", "", errors.New("no") }); err == nil {
		t.Error("a failed attestation succeeds")
	}
	var ran atomic.Int32
	var wait sync.WaitGroup
	tokens := make([]string, 24)
	for i := range tokens {
		wait.Go(func() {
			s := get(t, []*session.Shared{a, b}[i%2], made.ID)
			var err error
			tokens[i], _, _, err = s.Attest(t.Context(), func(context.Context) (string, string, error) {
				ran.Add(1)
				time.Sleep(20 * time.Millisecond)
				return fmt.Sprint("the-token-", i), "id", nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	for _, tok := range tokens {
		if tok != tokens[0] || tok == "" {
			t.Errorf("two tokens: %q and %q", tok, tokens[0])
		}
	}
	if ran.Load() != 1 {
		t.Errorf("attested %d times, want once", ran.Load())
	}
	if tok, ok := get(t, a, made.ID).Token(); !ok || tok != tokens[0] {
		t.Errorf("the other replica has the token %q", tok)
	}
	err := dbA.Each(t.Context(), store.Sessions, func(key string, value []byte) error {
		for _, secret := range []string{made.ID, made.Nonce, "the-token", "challenge-text"} {
			if strings.Contains(key+string(value), secret) {
				return fmt.Errorf("the database shows %q", secret)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := a.New(t.Context(), "tpm", "", "sha384", json.RawMessage(`"`+strings.Repeat("a", 64<<10)+`"`)); err == nil {
		t.Error("a challenge of more than 64 KiB is kept")
	}
	if _, err := a.Get(t.Context(), "nothing"); !errors.Is(err, session.ErrUnknown) {
		t.Errorf("unknown session: %v", err)
	}

	t.Run("expiry", func(t *testing.T) {
		short := replica(t, dbA, session.Options{Lifetime: 200 * time.Millisecond})
		s := create(t, short)
		time.Sleep(250 * time.Millisecond)
		if _, err := b.Get(t.Context(), s.ID); !errors.Is(err, session.ErrExpired) {
			t.Errorf("old session: %v", err)
		}
		if _, _, _, err := s.Attest(t.Context(), token("late")); !errors.Is(err, session.ErrExpired) {
			t.Errorf("attestation of an old session: %v", err)
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go b.Run(ctx, 10*time.Millisecond)
		for deadline := time.Now().Add(10 * time.Second); b.Len() != 1; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d sessions are left, want 1", b.Len())
			}
		}
	})
	t.Run("bound", func(t *testing.T) {
		var made, full atomic.Int32
		var wait sync.WaitGroup
		for i := range 16 {
			wait.Go(func() {
				for made.Load()+full.Load() < 10_200 {
					switch _, err := []*session.Shared{a, b}[i%2].New(t.Context(), "tpm", "", "sha384", nil); {
					case err == nil:
						made.Add(1)
					case errors.Is(err, session.ErrFull):
						full.Add(1)
					default:
						t.Error(err)
						return
					}
				}
			})
		}
		wait.Wait()
		if n := made.Load(); n > 9_999 || n < 9_900 || full.Load() == 0 { // one is left from above
			t.Errorf("%d sessions were made, want 9999 at most", n)
		}
		if a.Len() > 10_000 {
			t.Errorf("%d sessions are kept", a.Len())
		}
	})
}

// faulty lets calls of a store fail.
type faulty struct {
	*postgres.Store
	down atomic.Bool  // all calls fail
	mute atomic.Int32 // so many swaps happen, but their answers get lost
}

var errLine = errors.New("the line is cut")

func (f *faulty) Load(ctx context.Context, ns, key string) (store.Entry, error) {
	if f.down.Load() {
		return store.Entry{}, errLine
	}
	return f.Store.Load(ctx, ns, key)
}

func (f *faulty) CompareAndSwap(ctx context.Context, ns, key string, version int64, value []byte, l store.Limit) (int64, error) {
	if f.down.Load() {
		return 0, errLine
	}
	next, err := f.Store.CompareAndSwap(ctx, ns, key, version, value, l)
	if f.mute.Add(-1) >= 0 {
		return 0, errLine
	}
	return next, err
}

func TestFaults(t *testing.T) {
	srv := server.Start(t)
	db := database(t, srv.Dir, srv.Port)
	bad := &faulty{Store: db}
	a := replica(t, bad, session.Options{Lease: 300 * time.Millisecond})
	b := replica(t, db, session.Options{Lease: 300 * time.Millisecond})

	t.Run("lost answers", func(t *testing.T) {
		s := create(t, a)
		bad.mute.Store(1) // of taking the lease
		tok, _, again, err := s.Attest(t.Context(), func(context.Context) (string, string, error) {
			bad.mute.Store(1) // of a renewal, or of keeping the token
			return "one", "id", nil
		})
		if err != nil || tok != "one" || again {
			t.Errorf("%q, again %v, %v", tok, again, err)
		}
		if tok, ok := get(t, b, s.ID).Token(); !ok || tok != "one" {
			t.Errorf("the store has %q", tok)
		}
	})
	t.Run("lost lease", func(t *testing.T) {
		s := create(t, a)
		tok, _, again, err := s.Attest(t.Context(), func(ctx context.Context) (string, string, error) {
			bad.down.Store(true) // cannot renew
			tok, _, _, err := get(t, b, s.ID).Attest(t.Context(), token("of b"))
			if err != nil || tok != "of b" {
				t.Errorf("taking over: %q, %v", tok, err)
			}
			bad.down.Store(false)
			return "of a", "id", nil
		})
		if err != nil || tok != "of b" || !again {
			t.Errorf("the slow replica hands out %q, again %v, %v, want that of b", tok, again, err)
		}
	})
	t.Run("long work", func(t *testing.T) { // the lease is renewed: nobody takes over
		const lease = 4 * time.Second // so long that a busy machine renews it in time
		a, b := replica(t, db, session.Options{Lease: lease}), replica(t, db, session.Options{Lease: lease})
		s := create(t, a)
		var ran atomic.Int32
		var wait sync.WaitGroup
		for _, m := range []*session.Shared{a, b} {
			wait.Go(func() {
				if _, _, _, err := get(t, m, s.ID).Attest(t.Context(), func(context.Context) (string, string, error) {
					ran.Add(1)
					time.Sleep(lease + lease/2)
					return "slow", "id", nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if ran.Load() != 1 {
			t.Errorf("attested %d times, want once", ran.Load())
		}
	})
	t.Run("server killed", func(t *testing.T) {
		s := create(t, b)
		tok, _, _, err := s.Attest(t.Context(), func(context.Context) (string, string, error) {
			srv.Kill()
			srv.Run()
			return "survivor", "id", nil
		})
		if err != nil || tok != "survivor" {
			t.Errorf("%q, %v", tok, err)
		}
		if tok, _, again, err := get(t, a, s.ID).Attest(t.Context(), token("second")); err != nil || tok != "survivor" || !again {
			t.Errorf("afterwards: %q, again %v, %v", tok, again, err)
		}
	})
}

const childEnv = "CLOISTER_SESSION_TEST_CHILD"

// TestKill kills a broker in the middle of an attestation: another one finishes it when the lease has ended.
func TestKill(t *testing.T) {
	const lease = 4 * time.Second // so long that a busy machine renews it in time
	if where := os.Getenv(childEnv); where != "" {
		var dir, id string
		var port int
		if _, err := fmt.Sscan(where, &dir, &port, &id); err != nil {
			t.Fatal(err)
		}
		m := replica(t, database(t, dir, port), session.Options{Lease: lease})
		_, _, _, err := get(t, m, id).Attest(t.Context(), func(context.Context) (string, string, error) {
			fmt.Println("verifying")
			select {}
		})
		t.Fatal(err)
	}
	srv := server.Start(t)
	b := replica(t, database(t, srv.Dir, srv.Port), session.Options{Lease: lease})
	s := create(t, b)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", childEnv, srv.Dir, srv.Port, s.ID))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), lease/2)
	defer cancel()
	fn := func(context.Context) (string, string, error) { return "b", "id", nil }
	if tok, _, _, err := get(t, b, s.ID).Attest(ctx, fn); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another replica attests: %q, %v", tok, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the child was not killed")
	}
	if tok, _, again, err := get(t, b, s.ID).Attest(t.Context(), token("b")); err != nil || tok != "b" || again {
		t.Errorf("after the crash: %q, again %v, %v", tok, again, err)
	}
}
