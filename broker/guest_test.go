package broker

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/test/faketpm"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/kbs"
)

// clock is a clock that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// world is a broker with one approved guest.
type world struct {
	t     *testing.T
	dir   string
	url   string
	clock *clock
	log   *bytes.Buffer
	admin *client.Client
	tpm   *faketpm.TPM
	b     *Broker
	stop  func()
	// transport is how guests reach the broker; nil means in the clear.
	transport http.RoundTripper
}

const secretText = "the secret of the test, 0123456789"

const initToml = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n"

func newWorld(t *testing.T, change func(*config.Config)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), clock: &clock{t: time.Now().Truncate(time.Second)}, log: &bytes.Buffer{}}
	var err error
	w.tpm, err = faketpm.New(w.clock.now())
	w.must(err)
	root := filepath.Join(w.dir, "maker.pem")
	w.must(os.WriteFile(root, w.tpm.Root(), 0o600))
	cfg := config.Default()
	cfg.DataDir = filepath.Join(w.dir, "data")
	cfg.Server.InsecureHTTP = true
	cfg.TPM.EKRoots = []string{root}
	if change != nil {
		change(&cfg)
	}
	w.start(cfg)
	if cfg.Admin.Mode != config.AdminToken {
		return w
	}
	w.boot(w.tpm)
	w.must(w.admin.PutResource(t.Context(), "default/key/1", []byte(secretText)))
	w.must(w.admin.RegisterReferenceValues(t.Context(), map[string]any{
		"tpm_pcr00": []string{w.tpm.PCR(0)}, "tpm_pcr07": []string{w.tpm.PCR(7)},
		"tpm_pcr04": []string{w.tpm.PCR(4)}, "tpm_pcr09": []string{strings.Repeat("0", 64), w.tpm.PCR(9)},
		"tpm_init_data": []string{w.tpm.PCR(8)},
	}))
	return w
}

func (w *world) start(cfg config.Config) {
	w.t.Helper()
	var err error
	w.b, err = Open(w.t.Context(), cfg, Options{
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Version: "test", Now: w.clock.now,
	})
	w.must(err)
	srv := httptest.NewServer(w.b.Handler())
	b := w.b
	w.stop = sync.OnceFunc(func() {
		srv.Close()
		if err := b.Close(); err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(w.stop)
	w.url = srv.URL
	if cfg.Admin.Mode == config.AdminToken {
		w.admin, err = client.New(client.Config{URL: srv.URL, AdminTokenFile: filepath.Join(cfg.DataDir, AdminTokenFile)})
		w.must(err)
	}
}

// boot makes a TPM look as after the measured boot of the approved guest.
func (w *world) boot(t *faketpm.TPM) {
	w.t.Helper()
	t.Measure(0, []byte("firmware"))
	t.Measure(4, []byte("kernel"))
	t.Measure(7, []byte("no secure boot"))
	t.Measure(9, []byte("initrd"))
	t.Measure(9, []byte("console=ttyS0"))
	_, sum, err := initdata.Digest([]byte(initToml))
	w.must(err)
	t.Extend(8, sum)
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// guest is one run of the protocol, with places to tamper.
type guest struct {
	w      *world
	tpm    *faketpm.TPM
	key    *ecdsa.PrivateKey
	cookie *http.Cookie
	nonce  string
	token  string
	answer string
	init   string // init data; "" means initToml

	enrol bool
	// attestation is changed before it is sent.
	tamper func(*kbs.Attestation, *kbs.TPMEvidence)
	// body is changed as bytes before it is sent.
	body func([]byte) []byte
	sent []byte
	last *http.Response
}

func (w *world) guest() *guest {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	return &guest{w: w, tpm: w.tpm, key: key, enrol: true}
}

func (g *guest) do(method, path string, body []byte, header http.Header) (int, []byte) {
	g.w.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, g.w.url+path, bytes.NewReader(body))
	g.w.must(err)
	for k, v := range header {
		req.Header[k] = v
	}
	if g.cookie != nil {
		req.AddCookie(g.cookie)
	}
	res, err := cmp.Or(g.w.transport, http.DefaultTransport).RoundTrip(req)
	g.w.must(err)
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	g.w.must(err)
	g.last = res
	return res.StatusCode, answer
}

// auth takes a challenge.
func (g *guest) auth() (int, []byte) {
	g.w.t.Helper()
	params := kbs.RequestParams{SupportedHashAlgorithms: []string{"sha256", "sha384"}}
	if g.enrol {
		e := g.tpm.Enrol()
		params.TPM = &e
	}
	raw, err := json.Marshal(params)
	g.w.must(err)
	body, err := json.Marshal(kbs.Request{Version: kbs.Version, TEE: "tpm", ExtraParams: raw})
	g.w.must(err)
	status, answer := g.do("POST", "/kbs/v0/auth", body, nil)
	if status != http.StatusOK {
		return status, answer
	}
	var c kbs.Challenge
	g.w.must(json.Unmarshal(answer, &c))
	g.nonce = c.Nonce
	p, err := c.Params()
	g.w.must(err)
	g.answer = ""
	if p.TPM != nil {
		secret, err := g.tpm.Activate(*p.TPM)
		g.w.must(err)
		g.answer = base64.StdEncoding.EncodeToString(secret)
	}
	for _, cookie := range g.last.Cookies() {
		g.cookie = cookie
	}
	return status, answer
}

// attest sends evidence.
func (g *guest) attest() (int, []byte) {
	g.w.t.Helper()
	jwk, err := kbs.NewJWK(&g.key.PublicKey)
	g.w.must(err)
	att := kbs.Attestation{
		InitData: &kbs.InitData{Format: "toml", Body: cmp.Or(g.init, initToml)}, RuntimeData: kbs.RuntimeData{Nonce: g.nonce, TEEPubKey: jwk},
	}
	none := ""
	data, err := kbs.ReportData(att.RuntimeData, &none, kbs.DefaultHash)
	g.w.must(err)
	e, err := g.tpm.Evidence(data[:32])
	g.w.must(err)
	e.AKCredential = g.answer
	if g.tamper != nil {
		g.tamper(&att, &e)
	}
	att.TEEEvidence.Primary, err = json.Marshal(e)
	g.w.must(err)
	g.sent, err = json.Marshal(att)
	g.w.must(err)
	if g.body != nil {
		g.sent = g.body(g.sent)
	}
	return g.post(g.sent)
}

func (g *guest) post(body []byte) (int, []byte) {
	g.w.t.Helper()
	status, answer := g.do("POST", "/kbs/v0/attest", body, nil)
	var t kbs.TokenResponse
	if status == http.StatusOK {
		g.w.must(json.Unmarshal(answer, &t))
		g.token = t.Token
	}
	return status, answer
}

// ready runs the handshake and fails the test when it does not work.
func (g *guest) ready() *guest {
	g.w.t.Helper()
	if status, answer := g.auth(); status != http.StatusOK {
		g.w.t.Fatalf("auth: %d %s", status, answer)
	}
	if status, answer := g.attest(); status != http.StatusOK {
		g.w.t.Fatalf("attest: %d %s", status, answer)
	}
	return g
}

// detail is the text of a refusal.
func (w *world) detail(answer []byte) (name, text string) {
	w.t.Helper()
	e, err := kbs.ParseError(answer)
	if err != nil {
		w.t.Fatalf("answer %q: %v", answer, err)
	}
	return e.Name(), e.Detail
}
