package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker"
	"github.com/cloister/cloister/broker/config"
)

// realBroker serves in this process until the test ends, with TLS and a token as at its first start.
func realBroker(t *testing.T) broker.Ready {
	t.Helper()
	cfg := config.Default()
	cfg.DataDir, cfg.Server.Listen = filepath.Join(t.TempDir(), "data"), "127.0.0.1:0"
	b, err := broker.Open(t.Context(), cfg, broker.Options{Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, done := make(chan broker.Ready, 1), make(chan error, 1)
	go func() { done <- b.Serve(ctx, func(r broker.Ready) error { ready <- r; return nil }) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case r := <-ready:
		return r
	case err := <-done:
		stop()
		t.Fatal(err)
		return broker.Ready{}
	}
}

// TestSecretsOfARealBroker puts, shows, rotates, lists and removes.
func TestSecretsOfARealBroker(t *testing.T) {
	r := realBroker(t)
	t.Chdir(t.TempDir())
	const text = "the value of a secret 4711"
	if err := os.WriteFile("secret", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	run := func(code int, args ...string) string {
		t.Helper()
		out := cli(t, code, "", append(args, "--kbs", r.URL, "--kbs-cert", r.TLSCertificate, "--admin-token", r.AdminTokenFile)...)
		all.WriteString(out)
		return out
	}
	contains(t, run(exitDone, "secret", "put", "kbs:///default/key/1", "secret"), "26 bytes")
	contains(t, run(exitDone, "secret", "list"), "default/key/1")
	contains(t, run(exitDone, "secret", "rotate", "--size", "64", "kbs:///default/key/1"), "version 2", "64 bytes")
	contains(t, run(exitDone, "secret", "rotate", "kbs:///default/key/1"), "version 3", "64 bytes")
	shown := run(exitDone, "secret", "get", "kbs:///default/key/1")
	contains(t, shown, "kbs:///default/key/1", "newest", "64", "26")
	var info struct {
		Versions []struct{ Version, Size int }
	}
	if err := json.Unmarshal([]byte(run(exitDone, "secret", "get", "--json", "kbs:///default/key/1")), &info); err != nil || len(info.Versions) != 3 {
		t.Errorf("as JSON: %+v, %v", info, err)
	}
	contains(t, run(exitRefused, "secret", "get", "kbs:///default/key/none"), "hint: `cloister secret list`")
	contains(t, run(exitRefused, "secret", "rotate", "kbs:///default/key/none"), "default/key/none")
	run(exitDone, "secret", "rm", "kbs:///default/key/1")
	if out := run(exitDone, "secret", "list"); strings.Contains(out, "default/key/1") {
		t.Errorf("after its removal: %s", out)
	}
	token, err := os.ReadFile(r.AdminTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(all.String(), text) || strings.Contains(all.String(), strings.TrimSpace(string(token))) {
		t.Error("a command shows the value of the secret, or the token")
	}
	if err := os.WriteFile("wrong", []byte("cloister-admin-wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, cli(t, exitRefused, "", "secret", "list", "--kbs", r.URL, "--kbs-cert", r.TLSCertificate, "--admin-token", "wrong"), "401")
}

// TestTenantsOfARealBroker makes a tenant whose own token then works at its own address only.
func TestTenantsOfARealBroker(t *testing.T) {
	r := realBroker(t)
	t.Chdir(t.TempDir())
	root := func(code int, args ...string) string {
		t.Helper()
		return cli(t, code, "", append(args, "--kbs", r.URL, "--kbs-cert", r.TLSCertificate, "--admin-token", r.AdminTokenFile)...)
	}
	team := func(code int, token string, args ...string) string {
		t.Helper()
		return cli(t, code, "", append(args, "--kbs", r.URL+"/ns/team-a", "--kbs-cert", r.TLSCertificate, "--admin-token", token)...)
	}
	if err := os.WriteFile("secret", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	contains(t, root(exitDone, "tenant", "create", "--max-resources", "1", "team-a"), "team-a.admin-token")
	contains(t, root(exitRefused, "tenant", "create", "--out", "again", "team-a"), "team-a")
	team(exitDone, "team-a.admin-token", "secret", "put", "kbs:///default/key/1", "secret")
	contains(t, team(exitRefused, "team-a.admin-token", "secret", "put", "kbs:///default/key/2", "secret"), "at most")
	contains(t, root(exitDone, "tenant", "list"), "team-a", "1 of 1")
	if out := root(exitDone, "secret", "list"); strings.Contains(out, "default/key/1") {
		t.Error("the root lists a tenant's secret")
	}
	contains(t, team(exitRefused, r.AdminTokenFile, "secret", "list"), "401")
	contains(t, cli(t, exitRefused, "", "secret", "list", "--kbs", r.URL, "--kbs-cert", r.TLSCertificate, "--admin-token", "team-a.admin-token"), "401")
	root(exitDone, "tenant", "token", "--out", "second", "team-a")
	contains(t, team(exitRefused, "team-a.admin-token", "secret", "list"), "401")
	contains(t, team(exitDone, "second", "secret", "list"), "default/key/1")
	root(exitUsage, "tenant", "rm", "team-a")
	root(exitDone, "tenant", "rm", "--confirm", "team-a", "team-a")
	team(exitRefused, "second", "secret", "list")
	if out := root(exitDone, "tenant", "list"); strings.Contains(out, "team-a") {
		t.Errorf("after its removal: %s", out)
	}
	root(exitDone, "tenant", "create", "--out", "third", "team-a")
	if out := team(exitDone, "third", "secret", "list"); strings.Contains(out, "default/key/1") {
		t.Error("a tenant of the same name has the secrets of the one before")
	}
}

// TestKeysOfARealBroker rotates both keys and reads what was sealed before.
func TestKeysOfARealBroker(t *testing.T) {
	r := realBroker(t)
	t.Chdir(t.TempDir())
	run := func(code int, args ...string) string {
		t.Helper()
		return cli(t, code, "", append(args, "--kbs", r.URL, "--kbs-cert", r.TLSCertificate, "--admin-token", r.AdminTokenFile)...)
	}
	if err := os.WriteFile("secret", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(exitDone, "secret", "put", "kbs:///default/key/1", "secret")
	contains(t, run(exitDone, "broker", "rotate-key"), "is published")
	contains(t, run(exitDone, "broker", "rotate-key", "--revoke"), "is published")
	contains(t, run(exitDone, "broker", "rotate-key", "--storage"), "is the current one")
	contains(t, run(exitDone, "broker", "rotate-key", "--storage", "--retire"), "not needed any more")
	contains(t, run(exitDone, "secret", "rotate", "kbs:///default/key/1"), "version 2, 1 bytes") // needs the old value
	run(exitUsage, "broker", "rotate-key", "--retire")
}
