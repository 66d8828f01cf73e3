package browser

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// startBroker runs the program that is shipped, with TLS and a token as at its first start.
func startBroker(t *testing.T) (url, token string) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "cloister-broker")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./cmd/cloister-broker")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the broker: %v\n%s", err, out)
	}
	var log bytes.Buffer
	broker := exec.Command(program, "serve", "--data", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0", "--log-level", "error")
	broker.Stderr = &log
	out, err := broker.StdoutPipe()
	if err == nil {
		err = broker.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = broker.Process.Kill()
		_ = broker.Wait()
	})
	var ready struct {
		URL            string
		AdminTokenFile string `json:"admin_token_file"`
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &ready)
	}
	if err != nil {
		t.Fatalf("the broker says %q, %v; its log:\n%s", line, err, &log)
	}
	text, err := os.ReadFile(ready.AdminTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	return ready.URL, strings.TrimSpace(string(text))
}

// TestBrokerProcess goes through the console of a real broker: its TLS, cookies and headers are those of production.
func TestBrokerProcess(t *testing.T) {
	needs.Programs(t, "chromium")
	url, token := startBroker(t)
	b := newTab(t, url)
	b.signInWith(token)
	for path, says := range map[string]string{
		"/console/resources": "No resource is stored here.", "/console/tenants": "There is no tenant", "/console/policies": "default_cpu",
		"/console/attestations": "There are none.", "/console/audit": "console-sign-in",
	} {
		b.section(path)
		b.see(says)
	}
	if ask[bool](b, "document.cookie !== ''") {
		t.Error("scripts can read the cookie")
	}
	if heard := b.heard(); len(heard) > 0 {
		t.Errorf("the browser complains: %q", heard)
	}
}
