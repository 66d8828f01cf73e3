// Package replicas_test runs brokers as processes, kills them in the middle of their work and looks what is lost.
package replicas_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloister/cloister/broker"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/test/faketpm"
	"github.com/cloister/cloister/test/postgres"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/kbs"
)

const asBroker = "CLOISTER_TEST_AS_BROKER"

// TestMain is the broker itself when a test starts it again as a process.
func TestMain(m *testing.M) {
	if os.Getenv(asBroker) != "" {
		os.Exit(broker.Main(context.Background(), os.Args[1:], "test", os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

const document = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n"

// bootedTPM looks as after the boot of a guest.
func bootedTPM(t *testing.T) *faketpm.TPM {
	t.Helper()
	tpm, err := faketpm.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, pcr := range []int{0, 4, 7, 9} {
		tpm.Measure(pcr, []byte{byte(pcr)})
	}
	_, sum, err := initdata.Digest([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	tpm.Extend(8, sum)
	return tpm
}

// process is a broker.
type process struct {
	t      *testing.T
	dir    string // its data
	config string
	cmd    *exec.Cmd
	url    string
}

func newProcess(t *testing.T, tpm *faketpm.TPM, more string) *process {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "maker.pem")
	p := &process{t: t, dir: filepath.Join(dir, "data"), config: filepath.Join(dir, "broker.toml")}
	text := fmt.Sprintf("data_dir = %q\n[server]\nlisten = \"127.0.0.1:0\"\ninsecure_http = true\n[limits]\nrequests_per_second = 0\n[tpm]\nek_roots = [%q]\n%s",
		p.dir, root, more)
	for name, content := range map[string][]byte{root: tpm.Root(), p.config: []byte(text)} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// start waits until the broker answers.
func (p *process) start() {
	p.t.Helper()
	var log bytes.Buffer
	p.cmd = exec.Command(os.Args[0], "serve", "--config", p.config, "--log-level", "error")
	p.cmd.Env = append(os.Environ(), asBroker+"=1")
	p.cmd.Stderr = &log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	var ready broker.Ready
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &ready)
	}
	if err != nil {
		p.kill()
		p.t.Fatalf("the broker says %q, %v; its log:\n%s", line, err, &log)
	}
	p.url = ready.URL
	p.t.Cleanup(p.kill)
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *process) admin(t *testing.T, url, token string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{URL: url, AdminTokenFile: token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// released lists the attestations with an allowed read in the audit log, whose chain has to hold.
func (p *process) released(t *testing.T) int {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(p.dir, "audit*.jsonl"))
	if err != nil || len(logs) != 1 {
		t.Fatalf("audit logs: %v, %v", logs, err)
	}
	if _, err := audit.Verify(t.Context(), logs[0]); err != nil {
		t.Errorf("audit log %s: %v", logs[0], err)
	}
	f, err := os.Open(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var e audit.Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err == nil && e.Event == "resource-read" && e.Decision == audit.Allow {
			n++
		}
	}
	return n
}

func approve(t *testing.T, admin *client.Client, tpm *faketpm.TPM) {
	t.Helper()
	values := map[string]any{"tpm_init_data": []string{tpm.PCR(8)}}
	for _, i := range []int{0, 4, 7, 9} {
		values[fmt.Sprintf("tpm_pcr%02d", i)] = []string{tpm.PCR(i)}
	}
	if err := errors.Join(admin.RegisterReferenceValues(t.Context(), values), admin.PutResource(t.Context(), "default/key/1", []byte("the secret"))); err != nil {
		t.Fatal(err)
	}
}

// balancer gives each request to the next replica, and to the other one when that is not there: no request of a guest
// stays with the replica that answered the one before.
type balancer struct {
	mu    sync.Mutex
	turn  int
	to    []*url.URL
	retry atomic.Int64
}

func (b *balancer) order() []*url.URL {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn++
	n := len(b.to)
	out := make([]*url.URL, 0, n)
	for i := range n {
		out = append(out, b.to[(b.turn+i)%n])
	}
	return out
}

func (b *balancer) replace(i int, raw string) {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.to[i] = u
}

func (b *balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
	}
	var errs []error
	// A request that waits at one replica for the lease of another that was killed can outlive both; by then there is a new one.
	tried := map[*url.URL]bool{}
	for order := b.order(); len(order) > 0; order = slices.DeleteFunc(b.order(), func(u *url.URL) bool { return tried[u] }) {
		to := order[0]
		if len(tried) > 0 {
			b.retry.Add(1)
		}
		tried[to] = true
		try := r.Clone(r.Context())
		try.URL.Scheme, try.URL.Host, try.Host = to.Scheme, to.Host, to.Host
		try.Body = io.NopCloser(bytes.NewReader(body))
		res, err := http.DefaultTransport.RoundTrip(try)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		whole, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil { // killed in the middle of the answer
			errs = append(errs, err)
			continue
		}
		res.Body = io.NopCloser(bytes.NewReader(whole))
		return res, nil
	}
	return nil, errors.Join(errs...)
}

// TestOneOfTwoIsKilled lets guests shake hands with two brokers on one PostgreSQL, kills one and then the other, and
// wants every guest to get its secret.
func TestOneOfTwoIsKilled(t *testing.T) {
	pg := postgres.Start(t)
	tpm := bootedTPM(t)
	database := fmt.Sprintf("[database]\nbackend = \"postgresql\"\nhost = \"127.0.0.1\"\nport = %d\nname = %q\nuser = %q\npassword_file = %q\nca_file = %q\n",
		pg.Port, postgres.Database, postgres.User, pg.PasswordFile, pg.CAFile)
	replicas := []*process{newProcess(t, tpm, database), newProcess(t, tpm, database)}
	replicas[0].start()
	key, err := os.ReadFile(filepath.Join(replicas[0].dir, broker.StoreKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	// A second broker without the key does not make one of its own.
	other := newProcess(t, tpm, database)
	if out, err := exec.CommandContext(t.Context(), "env", asBroker+"=1", os.Args[0], "serve", "--config", other.config).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "put the key back") {
		t.Errorf("a broker without the storage key starts: %v\n%s", err, out)
	}
	if err := errors.Join(os.MkdirAll(replicas[1].dir, 0o700), os.WriteFile(filepath.Join(replicas[1].dir, broker.StoreKeyFile), key, 0o600)); err != nil {
		t.Fatal(err)
	}
	replicas[1].start()

	b := &balancer{to: make([]*url.URL, 2)}
	for i, r := range replicas {
		b.replace(i, r.url)
	}
	front := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}, Transport: b})
	defer front.Close()
	admin := replicas[0].admin(t, front.URL, filepath.Join(replicas[0].dir, broker.AdminTokenFile))
	approve(t, admin, tpm)

	const guests, rounds = 8, 30
	uri, err := kbs.ParseResourceURI("kbs:///default/key/1")
	if err != nil {
		t.Fatal(err)
	}
	device := faketpm.NewAttester(tpm)
	var done atomic.Int64
	reached := func(n int64) <-chan struct{} {
		c := make(chan struct{})
		go func() {
			defer close(c)
			for tick := time.NewTicker(5 * time.Millisecond); done.Load() < n; <-tick.C {
			}
		}()
		return c
	}
	third, half := reached(guests*rounds/3), reached(guests*rounds*2/3)
	var running sync.WaitGroup
	for range guests {
		running.Go(func() {
			for range rounds {
				c, err := attest.NewKBSClient(attest.KBSConfig{URL: front.URL, InitData: document}, device)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := c.Resource(t.Context(), uri)
				if err != nil || string(got) != "the secret" {
					t.Errorf("a guest got %q, %v", got, err)
				}
				done.Add(1)
			}
		})
	}
	<-third
	replicas[1].kill()
	replicas[1].start()
	b.replace(1, replicas[1].url)
	<-half
	replicas[0].kill()
	running.Wait()
	if b.retry.Load() == 0 {
		t.Error("no request met a broker that was gone: the test has shown nothing")
	}
	// What the first has kept, the second has too, the administrators' token with it.
	second := replicas[1].admin(t, replicas[1].url, filepath.Join(replicas[0].dir, broker.AdminTokenFile))
	list, err := second.ListResources(t.Context())
	if err != nil || len(list) != 1 {
		t.Errorf("resources by the second replica: %v, %v", list, err)
	}
	replicas[0].start()
	replicas[0].kill()
	replicas[1].kill()
	if n := replicas[0].released(t) + replicas[1].released(t); n < guests*rounds {
		t.Errorf("%d secrets were given, the audit logs know of %d", guests*rounds, n)
	}
}

// TestKilledWhileWriting kills a broker with its own store again and again while secrets are written and read.
func TestKilledWhileWriting(t *testing.T) {
	tpm := bootedTPM(t)
	p := newProcess(t, tpm, "")
	p.start()
	token := filepath.Join(p.dir, broker.AdminTokenFile)
	approve(t, p.admin(t, p.url, token), tpm)
	uri, err := kbs.ParseResourceURI("kbs:///default/key/1")
	if err != nil {
		t.Fatal(err)
	}
	acknowledged, read := map[string]bool{}, 0
	for round := range 5 {
		admin := p.admin(t, p.url, token)
		c, err := attest.NewKBSClient(attest.KBSConfig{URL: p.url, InitData: document}, faketpm.NewAttester(tpm))
		if err != nil {
			t.Fatal(err)
		}
		enough := make(chan struct{})
		var writer sync.WaitGroup
		writer.Go(func() {
			for i := 0; ; i++ {
				if i == 10 {
					close(enough)
				}
				path := fmt.Sprintf("round%d/write/%d", round, i)
				if err := admin.PutResource(t.Context(), path, []byte(path)); err != nil {
					return
				}
				acknowledged[path] = true
				if _, err := c.Resource(t.Context(), uri); err != nil {
					return
				}
				read++
			}
		})
		<-enough
		p.kill()
		writer.Wait()
		p.start()
	}
	list, err := p.admin(t, p.url, token).ListResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range list {
		delete(acknowledged, path)
	}
	if len(acknowledged) > 0 {
		t.Errorf("acknowledged and lost: %v", acknowledged)
	}
	p.kill()
	if n := p.released(t); n < read {
		t.Errorf("%d secrets were given, the audit log knows of %d", read, n)
	}
}
