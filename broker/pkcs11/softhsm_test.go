package pkcs11

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/test/ended"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/broker/pkcs11/link"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/test/softhsm"
)

func hsmConfig(h *softhsm.HSM, helper string) Config {
	return Config{Module: softhsm.Module, TokenLabel: softhsm.Label, PINFile: h.PINFile, Helper: helper,
		Environment: []string{softhsm.Variable}}
}

func open(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := Open(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestSecretsInSoftHSM(t *testing.T) {
	h := softhsm.New(t)
	c := open(t, hsmConfig(h, softhsm.Helper(t)))
	ctx := t.Context()
	if _, err := c.Get(ctx, "r/t/g"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("a secret that is not there: %v", err)
	}
	if err := c.Delete(ctx, "r/t/g"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("removing what is not there: %v", err)
	}
	for _, value := range [][]byte{[]byte("one"), {0}, bytes.Repeat([]byte{0xff, 0}, link.MaxValue/2), []byte("two")} {
		if err := c.Put(ctx, "r/t/g", value); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Get(ctx, "r/t/g"); err != nil || !bytes.Equal(got, value) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(value), err)
		}
	}
	for _, label := range []string{"r/t/gg", "r/t/G", "r/t", "r/t/g ", "R/t/g"} {
		if _, err := c.Get(ctx, label); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%q: %v", label, err)
		}
	}
	for _, value := range [][]byte{nil, make([]byte, link.MaxValue+1)} {
		if err := c.Put(ctx, "r/t/g", value); link.StatusOf(err) != link.StatusBadRequest {
			t.Errorf("a secret of %d bytes: %v", len(value), err)
		}
	}
	// Another process, after a restart, has it as well.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(ctx, "r/t/g"); !errors.Is(err, errClosed) {
		t.Errorf("after the end: %v", err)
	}
	c = open(t, hsmConfig(h, c.cfg.Helper))
	if got, err := c.Get(ctx, "r/t/g"); err != nil || string(got) != "two" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := c.Delete(ctx, "r/t/g"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(ctx, "r/t/g"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a removed secret: %v", err)
	}
}

func TestThousandGetsAndAKilledHelper(t *testing.T) {
	h := softhsm.New(t)
	c := open(t, hsmConfig(h, softhsm.Helper(t)))
	for i := range 8 {
		if err := c.Put(t.Context(), fmt.Sprintf("r/t/%d", i), fmt.Appendf(nil, "secret %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	began := c.current().pid
	var wg sync.WaitGroup
	half := make(chan struct{}, 1000)
	for i := range 1000 {
		wg.Go(func() {
			got, err := c.Get(t.Context(), fmt.Sprintf("r/t/%d", i%8))
			if want := fmt.Sprintf("secret %d", i%8); err != nil || string(got) != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
			half <- struct{}{}
		})
	}
	for range 300 {
		<-half
	}
	if err := unix.Kill(began, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if now := c.current().pid; now == began || now == 0 {
		t.Errorf("the helper is %d, as before", now)
	}
}

func TestWritersAtOnce(t *testing.T) {
	h := softhsm.New(t)
	helper := softhsm.Helper(t)
	clients := []*Client{open(t, hsmConfig(h, helper)), open(t, hsmConfig(h, helper))} // two brokers
	if err := clients[0].Put(t.Context(), "r/t/g", []byte("first")); err != nil {
		t.Fatal(err)
	}
	// At the same moment only within one process: SoftHSM lets another process see half an object (docs/limits.md).
	for turn := range 4 {
		c, other := clients[turn%2], clients[(turn+1)%2]
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if err := c.Put(t.Context(), "r/t/g", fmt.Appendf(nil, "value %d of %d", i, turn)); err != nil {
					t.Error(err)
				}
				if got, err := c.Get(t.Context(), "r/t/g"); err != nil || !bytes.HasPrefix(got, []byte("value ")) {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
		wg.Wait()
		if got, err := other.Get(t.Context(), "r/t/g"); err != nil || !bytes.HasSuffix(got, fmt.Appendf(nil, " of %d", turn)) {
			t.Errorf("the other broker got %q, %v after turn %d", got, err, turn)
		}
	}
	a, errA := clients[0].Get(t.Context(), "r/t/g")
	b, errB := clients[1].Get(t.Context(), "r/t/g")
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("%q and %q, %v, %v", a, b, errA, errB)
	}
	if err := clients[0].Delete(t.Context(), "r/t/g"); err != nil {
		t.Fatal(err)
	}
	if _, err := clients[1].Get(t.Context(), "r/t/g"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a removed secret: %v", err)
	}
}

func TestWrongPINIsTriedOnce(t *testing.T) {
	h := softhsm.New(t)
	helper := softhsm.Helper(t)
	cfg := hsmConfig(h, helper)
	cfg.PINFile = h.WrongPIN(t)
	for _, want := range []string{"CKR_PIN_INCORRECT", "was given a wrong PIN before"} {
		c, err := Open(t.Context(), cfg, nil)
		if err == nil {
			c.Close()
			t.Fatal("a wrong PIN opens the token")
		}
		if link.StatusOf(err) != link.StatusPIN || !errors.Is(err, errNever) || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "9999") {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	// The right one is not tried either, until somebody has looked.
	if out, err := h.Run(t, helper, "check"); err == nil || !strings.Contains(out, "was given a wrong PIN before") {
		t.Errorf("%s, %v", out, err)
	}
	if out, err := h.Run(t, helper, "check", "--after-wrong-pin"); err != nil {
		t.Errorf("%s, %v", out, err)
	}
	open(t, hsmConfig(h, helper))
}

// TestAPINThatBecomesWrong changes the PIN while the broker runs: a restart of the helper asks the token once, then never.
func TestAPINThatBecomesWrong(t *testing.T) {
	h := softhsm.New(t)
	c := open(t, hsmConfig(h, softhsm.Helper(t)))
	if err := os.WriteFile(h.PINFile, []byte("11111111"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(c.current().pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-c.ended // nothing starts a helper any more
	if _, err := c.Get(t.Context(), "r/t/g"); link.StatusOf(err) != link.StatusPIN || !errors.Is(err, errNever) {
		t.Errorf("got %v", err)
	}
}

func TestTokensThatAreNotThere(t *testing.T) {
	h := softhsm.New(t)
	helper := softhsm.Helper(t)
	for name, change := range map[string]func(c *Config){
		"label":  func(c *Config) { c.TokenLabel = "cloister tes" },
		"case":   func(c *Config) { c.TokenLabel = "Cloister test" },
		"serial": func(c *Config) { c.TokenSerial = "0000" },
		"module": func(c *Config) { c.Module = "/nonexistent/module.so" },
		"no lib": func(c *Config) { c.Module = h.PINFile },
		"pin":    func(c *Config) { c.PINFile = "/nonexistent/pin" },
		"helper": func(c *Config) { c.Helper = "/nonexistent/helper" },
	} {
		cfg := hsmConfig(h, helper)
		change(&cfg)
		if c, err := Open(t.Context(), cfg, nil); err == nil {
			c.Close()
			t.Errorf("%s: it opens", name)
		}
	}
	if err := os.Chmod(h.PINFile, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), hsmConfig(h, helper), nil); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a PIN file that others read: %v", err)
	}
	if err := os.Chmod(h.PINFile, 0o600); err != nil {
		t.Fatal(err)
	}
	h.AddToken(t, softhsm.Label)
	if _, err := Open(t.Context(), hsmConfig(h, helper), nil); link.StatusOf(err) != link.StatusAbsent {
		t.Errorf("two tokens with one label: %v", err)
	}
}

// TestTokenGoesAndComesBack takes the token away under a running helper.
func TestTokenGoesAndComesBack(t *testing.T) {
	h := softhsm.New(t)
	c := open(t, hsmConfig(h, softhsm.Helper(t)))
	if err := c.Put(t.Context(), "r/t/g", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(h.Dir, h.Dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(c.current().pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := c.Get(ctx, "r/t/g")
	if err == nil || errors.Is(err, errNever) || errors.Is(err, store.ErrNotFound) {
		t.Fatalf("a token that is away: %v", err)
	}
	if err := os.Rename(h.Dir+".away", h.Dir); err != nil {
		t.Fatal(err)
	}
	for s := c.current(); s.err != nil; s = c.current() {
		<-s.changed
	}
	if got, err := c.Get(ctx, "r/t/g"); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestHelperDiesWithTheBroker kills a process that has a helper.
func TestHelperDiesWithTheBroker(t *testing.T) {
	h := softhsm.New(t)
	broker := exec.Command(os.Args[0])
	broker.Env = append(os.Environ(), roleVariable+"=broker", "HELPER="+softhsm.Helper(t), "PIN_FILE="+h.PINFile)
	out, err := broker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = broker.Wait()
	if err := ended.Wait(pid, 20*time.Second); err != nil {
		t.Errorf("the helper lives on: %v", err)
	}
}

// broker is the process of the test above.
func broker() {
	c, err := Open(context.Background(), hsmConfig(&softhsm.HSM{PINFile: os.Getenv("PIN_FILE")}, os.Getenv("HELPER")), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.current().pid)
	select {}
}
