package pkcs11

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/pkcs11/link"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
)

// The test program plays other programs: which one is in roleVariable.
const (
	roleVariable = "CLOISTER_PKCS11_ROLE"
	logVariable  = "CLOISTER_PKCS11_LOG"
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case "broker":
		broker()
	default:
		fake(role)
	}
}

// fake is a helper that misbehaves.
func fake(role string) {
	f, err := os.OpenFile(os.Getenv(logVariable), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(f, "start\n")
	conn, err := net.FileConn(os.NewFile(3, "link"))
	if err != nil {
		panic(err)
	}
	send := func(id uint64, code link.Status, fields ...[]byte) {
		_ = link.Write(conn, link.Frame{ID: id, Code: byte(code), Fields: fields})
	}
	switch role {
	case "not ready":
		_, _ = link.Read(conn)
		return
	case "exits":
		return
	case "garbage first":
		_, _ = conn.Write([]byte("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"))
		return
	case "no login":
		send(0, link.StatusOK)
		_, _ = link.Read(conn)
		return
	case "refuses PIN":
		send(0, link.StatusLogin)
		send(0, link.StatusPIN, []byte("wrong PIN\n\x1b[31m"))
		return
	}
	send(0, link.StatusLogin)
	if role == "dies in login" {
		return
	}
	send(0, link.StatusOK)
	for {
		q, err := link.Read(conn)
		if err != nil {
			return
		}
		switch role {
		case "hangs":
		case "oversized":
			_, _ = conn.Write(binary.BigEndian.AppendUint32(nil, 1<<31))
		case "endless":
			for err == nil {
				_, err = conn.Write(make([]byte, 1<<20))
			}
		case "garbage":
			_, _ = conn.Write([]byte("\x00\x00\x00\x0a0123456789abcdefghijklmnopqrstuvwxyz"))
		case "wrong id":
			send(q.ID+7, link.StatusOK, []byte("x"))
		case "id 0":
			send(0, link.StatusOK, []byte("x"))
		case "no field":
			send(q.ID, link.StatusOK)
		case "many fields":
			send(q.ID, link.StatusOK, []byte("x"), []byte("y"))
		case "no status":
			send(q.ID, 200, []byte("x"))
		case "login again":
			send(q.ID, link.StatusLogin)
		case "twice":
			send(q.ID, link.StatusOK, []byte("x"))
			send(q.ID, link.StatusOK, []byte("x"))
		case "crashes":
			return
		case "lost":
			send(q.ID, link.StatusLost, []byte("CKR_DEVICE_REMOVED"))
		case "full":
			send(q.ID, link.StatusFull, []byte("CKR_DEVICE_MEMORY"))
		case "read-only":
			send(q.ID, link.StatusReadOnly, []byte("CKR_TOKEN_WRITE_PROTECTED"))
		case "long text":
			send(q.ID, link.StatusFailed, []byte(strings.Repeat("\x1b[31m\n", 4000)))
		case "missing":
			send(q.ID, link.StatusNotFound, []byte("none"))
		}
	}
}

func fakeConfig(t *testing.T, role string) (Config, func() int) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	t.Setenv(roleVariable, role)
	t.Setenv(logVariable, log)
	starts := func() int {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "start\n")
	}
	return Config{Module: "/m", TokenLabel: "l", PINFile: "/p", Helper: os.Args[0], TimeoutMS: 20_000, Sessions: 2,
		Environment: []string{roleVariable, logVariable}}, starts
}

func TestHostileAnswersEndTheHelper(t *testing.T) {
	for _, role := range []string{"oversized", "endless", "garbage", "wrong id", "id 0", "no field", "many fields", "no status", "login again",
		"crashes", "lost"} {
		t.Run(role, func(t *testing.T) {
			cfg, starts := fakeConfig(t, role)
			c := open(t, cfg)
			if got, err := c.Get(t.Context(), "r/t/g"); !errors.Is(err, errLost) || got != nil {
				t.Fatalf("%q, %v", got, err)
			}
			if n := starts(); n != maxTries {
				t.Errorf("%d helpers were started for one request, want %d", n, maxTries)
			}
			if err := c.Delete(t.Context(), "r/t/g"); err == nil && role != "no field" { // which is right for a delete
				t.Error("a delete succeeds")
			}
			if n := starts(); n > maxTries+1 {
				t.Errorf("a delete was tried again: %d starts", n)
			}
		})
	}
}

func TestAnswersThatAreErrors(t *testing.T) {
	for role, want := range map[string]error{"full": resource.ErrQuota, "read-only": resource.ErrReadOnly, "missing": store.ErrNotFound,
		"long text": nil} {
		cfg, starts := fakeConfig(t, role)
		c := open(t, cfg)
		err := c.Put(t.Context(), "r/t/g", []byte("x"))
		if err == nil || want != nil && !errors.Is(err, want) || len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("%s: %v", role, err)
		}
		if n := starts(); n != 1 {
			t.Errorf("%s: %d starts", role, n)
		}
	}
}

func TestAHelperThatHangsIsKilled(t *testing.T) {
	cfg, starts := fakeConfig(t, "hangs")
	cfg.TimeoutMS = 300
	c := open(t, cfg)
	// A caller that is in a hurry leaves; its session stays taken until the helper is killed.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Get(ctx, "r/t/g"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if got, err := c.Get(t.Context(), "r/t/g"); err == nil {
				t.Errorf("got %q", got)
			}
		})
	}
	wg.Wait()
	// The next one is started by itself, and may take longer than all of them wait.
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for end := time.Now().Add(time.Minute); starts() < 2 && time.Now().Before(end); <-look.C {
	}
	if n := starts(); n < 2 || n > 10 {
		t.Errorf("%d starts", n)
	}
}

func TestStartsThatFail(t *testing.T) {
	for role, want := range map[string]link.Status{"exits": link.StatusFailed, "garbage first": link.StatusFailed,
		"no login": link.StatusFailed, "refuses PIN": link.StatusPIN, "dies in login": link.StatusFailed} {
		cfg, _ := fakeConfig(t, role)
		c, err := Open(t.Context(), cfg, nil)
		if err == nil {
			c.Close()
		}
		if link.StatusOf(err) != want || strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("%s: %v", role, err)
		}
	}
	cfg, _ := fakeConfig(t, "not ready")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, cfg, nil); err == nil {
		t.Error("a helper that is not ready is taken")
	}
}

// TestBlindLogins starts helpers that vanish while they log in: the token may have counted a wrong PIN each time.
func TestBlindLogins(t *testing.T) {
	cfg, starts := fakeConfig(t, "crashes")
	c := open(t, cfg)
	t.Setenv(roleVariable, "dies in login")
	if _, err := c.Get(t.Context(), "r/t/g"); err == nil {
		t.Fatal("it answers")
	}
	<-c.ended
	if n := starts(); n != 1+maxBlindLogins {
		t.Errorf("%d starts, want %d", n, 1+maxBlindLogins)
	}
	if _, err := c.Get(t.Context(), "r/t/g"); !errors.Is(err, errNever) {
		t.Errorf("got %v", err)
	}
}

func TestOnlyNamedVariablesAreHandedOn(t *testing.T) {
	t.Setenv("SECRET_OF_THE_BROKER", "x")
	t.Setenv("WANTED", "y")
	_, args, env, err := Config{Module: "/m", TokenLabel: "l", PINFile: "/p", Environment: []string{"WANTED", "UNSET_VARIABLE"}}.command()
	if err != nil || !slices.Equal(env, []string{"WANTED=y"}) {
		t.Errorf("%q, %v", env, err)
	}
	if got := strings.Join(args, " "); got != "serve --module /m --pin-file /p --sessions 4 --token-label l" {
		t.Errorf("%q", got)
	}
	if _, _, env, _ = (Config{}).command(); env == nil {
		t.Error("a helper without variables would get all")
	}
}

func TestValidate(t *testing.T) {
	good := Config{Module: "/m", TokenLabel: "l", PINFile: "/p"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(c *Config){
		"module": func(c *Config) { c.Module = "m.so" }, "pin_file": func(c *Config) { c.PINFile = "" },
		"token_label and": func(c *Config) { c.TokenLabel = "" }, "token_label has": func(c *Config) { c.TokenLabel = strings.Repeat("x", 33) },
		"token_serial has": func(c *Config) { c.TokenSerial = strings.Repeat("x", 17) }, "sessions": func(c *Config) { c.Sessions = 65 },
		"timeout_ms": func(c *Config) { c.TimeoutMS = -1 }, "environment": func(c *Config) { c.Environment = []string{"A=B"} },
		"helper": func(c *Config) { c.Helper = "x" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
