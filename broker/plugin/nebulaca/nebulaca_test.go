package nebulaca

import (
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slackhq/nebula/cert"

	"github.com/cloister/cloister/broker/plugin"
)

var now = time.Date(2026, 11, 22, 8, 0, 0, 5, time.UTC)

func fixture(t *testing.T, ca CAConfig) (*Plugin, string) {
	t.Helper()
	dir := t.TempDir()
	p, err := New(Config{WorkDir: dir, CA: ca}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	return p, dir
}

func ask(t *testing.T, p *Plugin, query string) (map[string][]byte, error) {
	t.Helper()
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	r, err := plugin.NewRequest("GET", "credential", values, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := p.Handle(t.Context(), r)
	if err != nil {
		return nil, err
	}
	// The protocol has arrays of numbers, not base64.
	var numbers map[string][]int
	if err := json.Unmarshal(answer.Body, &numbers); err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for k, v := range numbers {
		for _, n := range v {
			out[k] = append(out[k], byte(n))
		}
	}
	return out, nil
}

func TestCredentials(t *testing.T) {
	for _, ca := range []CAConfig{{}, {Curve: "P256"}, {Version: 2}, {Version: 2, Curve: "P256"}} {
		p, dir := fixture(t, ca)
		got, err := ask(t, p, "name=pod1&ip=10.1.2.3/16&duration=24h&groups=server,ssh&subnets=192.168.0.0/24,192.168.1.0/24")
		if err != nil {
			t.Fatalf("%+v: %v", ca, err)
		}
		node, rest, err := cert.UnmarshalCertificateFromPEM(got["node_crt"])
		if err != nil || len(rest) > 0 {
			t.Fatal(err)
		}
		pool, err := cert.NewCAPoolFromPEM(got["ca_crt"])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pool.VerifyCertificate(now.Add(time.Hour), node); err != nil {
			t.Errorf("%+v: the authority does not stand behind the node: %v", ca, err)
		}
		if _, err := pool.VerifyCertificate(now.Add(25*time.Hour), node); err == nil {
			t.Errorf("%+v: the certificate lives on", ca)
		}
		key, _, curve, err := cert.UnmarshalPrivateKeyFromPEM(got["node_key"])
		if err != nil || node.VerifyPrivateKey(curve, key) != nil {
			t.Errorf("%+v: the key is not that of the certificate (%v)", ca, err)
		}
		if node.Name() != "pod1" || node.IsCA() || node.Networks()[0].String() != "10.1.2.3/16" || len(node.UnsafeNetworks()) != 2 ||
			strings.Join(node.Groups(), " ") != "server ssh" {
			t.Errorf("%+v: %v", ca, node)
		}
		info, err := os.Stat(filepath.Join(dir, "ca", "ca.key"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the key file: %v, %v", info, err)
		}
		// A second start goes on with the same authority.
		again, err := New(Config{WorkDir: dir}, func() time.Time { return now })
		if err != nil || string(again.ca.pem) != string(p.ca.pem) {
			t.Errorf("again: %v", err)
		}
		two, err := ask(t, again, "name=pod1&ip=10.1.2.3/16")
		if err != nil || string(two["node_key"]) == string(got["node_key"]) {
			t.Errorf("two nodes have one key (%v)", err)
		}
	}
}

func TestLimitsAndBadRequests(t *testing.T) {
	p, _ := fixture(t, CAConfig{IPs: "10.1.0.0/16", Groups: "server", Subnets: "192.168.0.0/16", Duration: "48h"})
	if _, err := ask(t, p, "name=pod1&ip=10.1.2.3/16&groups=server"); err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{
		"", "name=pod1", "ip=10.1.2.3/16", "name=pod1&ip=10.1.2.3", "name=pod1&ip=10.2.0.1/16", "name=pod1&ip=10.1.2.3/8",
		"name=pod1&ip=10.1.2.3/16,10.1.2.4/16",
		"name=pod1&ip=10.1.2.3/16&groups=root", "name=pod1&ip=10.1.2.3/16&subnets=10.0.0.0/8", "name=pod1&ip=10.1.2.3/16&duration=49h",
		"name=pod1&ip=10.1.2.3/16&duration=-1h", "name=pod1&ip=10.1.2.3/16&duration=x", "name=a%0Ab&ip=10.1.2.3/16",
		"name=" + strings.Repeat("a", 254) + "&ip=10.1.2.3/16",
		"name=pod1&ip=fd00::1/64", "name=pod1&ip=-h", "name=pod1&ip=10.1.2.3/16&groups=" + strings.Repeat("server,", maxList+1),
	} {
		if _, err := ask(t, p, query); !errors.Is(err, plugin.ErrRequest) {
			t.Errorf("%.80s: got %v", query, err)
		}
	}
	p.now = func() time.Time { return now.Add(49 * time.Hour) }
	if _, err := ask(t, p, "name=pod1&ip=10.1.2.3/16"); err == nil {
		t.Error("an authority that ended signs")
	}
	for _, r := range []*plugin.Request{
		{Method: "POST", Path: []string{"credential"}}, {Method: "GET"}, {Method: "GET", Path: []string{"ca"}},
		{Method: "GET", Path: []string{"credential", "x"}},
	} {
		if _, err := p.NeedsAdmin(t.Context(), r); !errors.Is(err, plugin.ErrRequest) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestDamagedAuthorities(t *testing.T) {
	_, other := fixture(t, CAConfig{})
	otherKey, err := os.ReadFile(filepath.Join(other, "ca/ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(crt, key string) error{
		"no key":         func(_, key string) error { return os.Remove(key) },
		"no certificate": func(crt, _ string) error { return os.Remove(crt) },
		"other key":      func(_, key string) error { return os.WriteFile(key, otherKey, 0o600) },
		"open key":       func(_, key string) error { return os.Chmod(key, 0o644) },
		"no PEM":         func(crt, _ string) error { return os.WriteFile(crt, []byte("x"), 0o600) },
		"key no PEM":     func(_, key string) error { return os.WriteFile(key, []byte("777333"), 0o600) },
	} {
		_, dir := fixture(t, CAConfig{})
		if err := damage(filepath.Join(dir, "ca/ca.crt"), filepath.Join(dir, "ca/ca.key")); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Config{WorkDir: dir}, func() time.Time { return now }); err == nil || strings.Contains(err.Error(), "777333") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	_, dir := fixture(t, CAConfig{Duration: "1h"})
	if _, err := New(Config{WorkDir: dir}, func() time.Time { return now.Add(2 * time.Hour) }); err == nil {
		t.Error("an authority that ended is accepted")
	}
	for _, c := range []Config{
		{}, {WorkDir: "x"}, {WorkDir: "/x", CA: CAConfig{Curve: "x"}}, {WorkDir: "/x", CA: CAConfig{Version: 3}},
		{WorkDir: "/x", CA: CAConfig{Duration: "x"}}, {WorkDir: "/x", CA: CAConfig{IPs: "x"}},
	} {
		if c.Validate() == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}
