package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/store/postgres"
	"github.com/cloister/cloister/broker/store/storetest"
	server "github.com/cloister/cloister/test/postgres"
)

func config(s *server.Server) postgres.Config {
	return postgres.Config{Host: s.Dir, Port: s.Port, Database: server.Database, User: server.User, PasswordFile: s.PasswordFile}
}

func open(t *testing.T, c postgres.Config) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStore(t *testing.T) {
	srv := server.Start(t)
	t.Run("suite", func(t *testing.T) { storetest.Run(t, open(t, config(srv)), time.Sleep) })
	t.Run("tls", func(t *testing.T) { testTLS(t, srv) })
	t.Run("large append", func(t *testing.T) {
		s := open(t, config(srv))
		for i := range 450 {
			if err := s.Append(t.Context(), store.Decisions, fmt.Sprintf("x%04d", i), nil, 300); err != nil {
				t.Fatal(err)
			}
		}
		if u, err := s.Usage(t.Context(), store.Decisions); err != nil || u.Entries < 300 || u.Entries > 303 {
			t.Errorf("kept %d, want 300 to 303, %v", u.Entries, err)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := open(t, config(srv)).Get(ctx, store.KBS, "a"); !errors.Is(err, context.Canceled) {
			t.Errorf("a call of a caller who is gone: %v", err)
		}
	})
}

func testTLS(t *testing.T, srv *server.Server) {
	c := config(srv)
	c.Host, c.TLS.CAFile = "127.0.0.1", srv.CAFile
	if err := open(t, c).Health(t.Context()); err != nil {
		t.Error(err)
	}
	byURL := postgres.Config{
		URL:          fmt.Sprintf("postgres://%s@%s/%s?sslrootcert=%s", server.User, srv.Address(), server.Database, srv.CAFile),
		PasswordFile: srv.PasswordFile,
	}
	if err := open(t, byURL).Health(t.Context()); err != nil {
		t.Error(err)
	}
	withPassword := postgres.Config{URL: fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", server.User,
		strings.ReplaceAll(server.Password, "%", "%25"), srv.Address(), server.Database)}
	if err := open(t, withPassword).Health(t.Context()); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*postgres.Config){
		"unknown authority": func(c *postgres.Config) { c.TLS.CAFile = "" },
		"another name":      func(c *postgres.Config) { c.Host = "localhost" },
		"no such user":      func(c *postgres.Config) { c.User = "nobody" },
		"wrong password": func(c *postgres.Config) {
			c.PasswordFile = filepath.Join(t.TempDir(), "p")
			if err := os.WriteFile(c.PasswordFile, []byte("sesame-open"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"open password file": func(c *postgres.Config) {
			c.PasswordFile = filepath.Join(t.TempDir(), "p")
			if err := os.WriteFile(c.PasswordFile, []byte(server.Password), 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"wrong password in url": func(c *postgres.Config) {
			*c = postgres.Config{URL: fmt.Sprintf("postgres://%s:sesame-open@%s/%s?sslrootcert=%s",
				server.User, srv.Address(), server.Database, srv.CAFile)}
		},
	} {
		bad, began := c, time.Now()
		change(&bad)
		bad.ConnectTimeout = time.Minute
		s, err := postgres.Open(t.Context(), bad)
		if err == nil {
			t.Errorf("%s: connected, %v", name, s.Close())
			continue
		}
		if strings.Contains(err.Error(), "sesame-open") || strings.Contains(err.Error(), server.Password) {
			t.Errorf("%s: the password is in the error: %v", name, err)
		}
		if d := time.Since(began); d > 30*time.Second {
			t.Errorf("%s: refused after %s, want at once", name, d)
		}
	}
}

// TestRestart kills the server under load: what was acknowledged is there, and the store recovers by itself.
func TestRestart(t *testing.T) {
	srv := server.Start(t)
	s := open(t, config(srv))
	ctx := t.Context()
	var wait sync.WaitGroup
	var stop atomic.Bool
	var acked, failed atomic.Int64
	const writers = 4
	for w := range writers {
		wait.Go(func() {
			for i := 0; !stop.Load() && ctx.Err() == nil; i++ {
				key := fmt.Sprintf("%d/%06d", w, i)
				if err := s.Put(ctx, store.KBS, map[string][]byte{key: []byte(key), key + "'": []byte(key)}); err != nil {
					failed.Add(1)
					time.Sleep(5 * time.Millisecond)
					continue
				}
				if err := s.Put(ctx, store.Keys, map[string][]byte{key: nil}); err == nil { // the list of what must be there
					acked.Add(1)
				}
			}
		})
	}
	for range 3 {
		until(t, "writes go on", func() bool { return acked.Load() > 50 })
		acked.Store(0)
		srv.Kill()
		if err := s.Health(ctx); err == nil {
			t.Error("a dead server is healthy")
		}
		srv.Run()
		until(t, "the store recovers", func() bool { return s.Health(ctx) == nil })
	}
	until(t, "writes go on", func() bool { return acked.Load() > 50 })
	stop.Store(true)
	wait.Wait()
	t.Logf("%d writes failed while the server was killed three times", failed.Load())
	n := 0
	err := s.Each(ctx, store.Keys, func(key string, _ []byte) error {
		n++
		for _, k := range []string{key, key + "'"} {
			if v, err := s.Get(ctx, store.KBS, k); err != nil || string(v) != key {
				return fmt.Errorf("acknowledged write %s: %q, %w", k, v, err)
			}
		}
		return nil
	})
	if err != nil || n < 200 {
		t.Errorf("%d writes, %v", n, err)
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("does not come true: %s", what)
		}
	}
}

const childEnv = "CLOISTER_POSTGRES_TEST_CHILD"

// TestKill kills a broker while it writes pairs of values: each pair is there as a whole or not at all, what it reported
// is there, and it leaves no lock behind.
func TestKill(t *testing.T) {
	if where := os.Getenv(childEnv); where != "" {
		dir, port, _ := strings.Cut(where, " ")
		var n int
		if _, err := fmt.Sscan(port, &n); err != nil {
			t.Fatal(err)
		}
		writePairs(t, config(&server.Server{Dir: dir, Port: n, PasswordFile: filepath.Join(dir, "password")}))
		return
	}
	srv := server.Start(t)
	s := open(t, config(srv))
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", childEnv, srv.Dir, srv.Port))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last, lines := "", bufio.NewScanner(out)
		for range 30 + round {
			if !lines.Scan() {
				t.Fatalf("the writer ended: %v", lines.Err())
			}
			last = lines.Text()
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it said before it died counts
			last = lines.Text()
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the writer was not killed")
		}
		if v, err := s.Get(t.Context(), store.KBS, "a"); err != nil || len(v) < len(last) || len(v) == len(last) && string(v) < last {
			t.Errorf("acknowledged %s, found %s, %v", last, v, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if err := s.Put(ctx, store.KBS, map[string][]byte{"c": nil, "a": []byte("0"), "b": []byte("0")}); err != nil {
			t.Errorf("writing where a dead broker wrote: %v", err)
		}
		cancel()
	}
}

func writePairs(t *testing.T, c postgres.Config) {
	s, err := postgres.Open(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; ; i++ {
		v := []byte(fmt.Sprint(i))
		if err := s.Put(context.Background(), store.KBS, map[string][]byte{"a": v, "b": v}); err != nil {
			t.Fatal(err)
		}
		a, errA := s.Get(context.Background(), store.KBS, "a")
		b, errB := s.Get(context.Background(), store.KBS, "b")
		if errA != nil || errB != nil || string(a) != string(b) {
			t.Fatalf("half of a pair: %s, %s, %v, %v", a, b, errA, errB)
		}
		fmt.Println(i)
	}
}

// TestStartTogether opens many stores on an empty database at once: one makes the schema, the others wait for it.
func TestStartTogether(t *testing.T) {
	srv := server.Start(t)
	var wait sync.WaitGroup
	for range 6 {
		wait.Go(func() {
			s, err := postgres.Open(t.Context(), config(srv))
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(s.Health(t.Context()), s.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}
