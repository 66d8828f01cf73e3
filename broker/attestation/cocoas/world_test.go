package cocoas

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/asapi"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/tlscert"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/broker/verifier/sample"
	"github.com/cloister/cloister/broker/verifier/tpm"
	"github.com/cloister/cloister/test/faketpm"
	"github.com/cloister/cloister/wire/as"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/kbs"
)

const adminToken = "the-administrator"

type oneAdmin struct{}

func (oneAdmin) Admit(_ context.Context, c adminauth.Call) (string, error) {
	if c.Bearer != adminToken {
		return "", adminauth.ErrDenied
	}
	return "ann", nil
}

// world is an attestation service of this project, with real verifiers, policies and tokens, behind TLS.
type world struct {
	t        *testing.T
	dir      string
	tpm      *faketpm.TPM
	api      *asapi.API
	policies *rego.Set
	cert     tls.Certificate
	certFile string
	address  string
	server   *grpc.Server
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) file(name string, text []byte) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	w.must(os.WriteFile(path, text, 0o600))
	return path
}

func newSigner(t *testing.T) *token.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := token.NewSigner(time.Now, 0, token.SigningKey{Private: key})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldWith(t, nil)
}

// references is where an attestation service looks reference values up.
type references interface {
	Lookup(ctx context.Context, name string) (json.RawMessage, error)
	Register(ctx context.Context, message []byte, by string) ([]string, error)
}

// newWorldWith makes a service with reference values of its own, or with given ones.
func newWorldWith(t *testing.T, refs references) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	var err error
	w.tpm, err = faketpm.New(time.Now())
	w.must(err)
	root := w.file("maker.pem", w.tpm.Root())
	db, err := store.Open(filepath.Join(w.dir, "store.db"))
	w.must(err)
	log, err := audit.Open(filepath.Join(w.dir, "audit.jsonl"), audit.Options{Now: time.Now})
	w.must(err)
	t.Cleanup(func() {
		if err := errors.Join(log.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	})
	w.policies = rego.NewSet(db, appraise.Namespace)
	if refs == nil {
		refs = refstore.New(db, time.Now, 0)
	}
	appraiser, err := appraise.New(t.Context(), w.policies, refs, nil)
	w.must(err)
	verifiers, err := verifier.NewSet(verifier.Builtin(verifier.Config{
		Now: time.Now, TPM: tpm.Config{EKRootFiles: []string{root}, Now: time.Now}, Sample: sample.Config{Insecure: true},
	}))
	w.must(err)
	signer := newSigner(t)
	w.api = asapi.New(asapi.Parts{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now, Policies: w.policies, References: refs, Audit: log,
		Attestation: &attestation.Service{Verifiers: verifiers, Appraiser: appraiser, Tokens: signer, Now: time.Now},
		Decisions:   decision.NewStore(db, 0), Tokens: signer, Admins: oneAdmin{},
	})
	w.keys("keys.json", signer)
	w.file("admin-token", []byte(adminToken+"\n"))
	w.certFile = filepath.Join(w.dir, "tls.crt")
	w.cert, err = tlscert.LoadOrCreate(w.certFile, filepath.Join(w.dir, "tls.key"), []string{"127.0.0.1"}, time.Now())
	w.must(err)
	return w
}

// keys writes the key set of a signer to a file.
func (w *world) keys(name string, s *token.Signer) string {
	w.t.Helper()
	raw, err := json.Marshal(s.KeySet())
	w.must(err)
	return w.file(name, raw)
}

func (w *world) tls() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{w.cert}, MinVersion: tls.VersionTLS12}
}

// serve starts the service on a new port, or on the given one.
func (w *world) serve(s *grpc.Server, address string) {
	w.t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(w.t.Context(), "tcp", address)
	w.must(err)
	w.server, w.address = s, ln.Addr().String()
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	w.t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			w.t.Error(err)
		}
	})
}

func (w *world) start() *world {
	w.t.Helper()
	w.serve(w.api.GRPC(grpc.Creds(credentials.NewTLS(w.tls()))), "127.0.0.1:0")
	return w
}

// answers is a service that does what it is told.
type answers struct {
	as.UnimplementedAttestationServiceServer
	evaluate func(context.Context, *as.AttestationRequest) (string, error)
	nonce    string
	asked    map[string]string
}

func (a *answers) AttestationEvaluate(ctx context.Context, r *as.AttestationRequest) (*as.AttestationResponse, error) {
	text, err := a.evaluate(ctx, r)
	return &as.AttestationResponse{AttestationToken: text}, err
}

func (a *answers) GetAttestationChallenge(_ context.Context, r *as.ChallengeRequest) (*as.ChallengeResponse, error) {
	a.asked = r.GetInner()
	return &as.ChallengeResponse{AttestationChallenge: a.nonce}, nil
}

// pretend starts a service that does what it is told.
func (w *world) pretend(a *answers) *world {
	w.t.Helper()
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(w.tls())), grpc.MaxRecvMsgSize(16<<20), grpc.MaxSendMsgSize(32<<20))
	as.RegisterAttestationServiceServer(s, a)
	w.serve(s, "127.0.0.1:0")
	return w
}

func (w *world) config() Config {
	c := Config{JWKSets: []string{filepath.Join(w.dir, "keys.json")}}
	c.Address, c.CACerts, c.AdminTokenFile = "https://"+w.address, []string{w.certFile}, filepath.Join(w.dir, "admin-token")
	return c
}

func (w *world) client(change func(*Config)) *Client {
	w.t.Helper()
	cfg := w.config()
	if change != nil {
		change(&cfg)
	}
	c, err := Open(w.t.Context(), cfg, Options{Now: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	w.must(err)
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

const initToml = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n"

// runtime is the runtime data of a new session and a new guest.
func (w *world) runtime(additional string) (map[string]any, []byte) {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	jwk, err := kbs.NewJWK(&key.PublicKey)
	w.must(err)
	nonce := make([]byte, 32)
	_, err = rand.Read(nonce)
	w.must(err)
	m := map[string]any{"nonce": base64.StdEncoding.EncodeToString(nonce), "tee-pubkey": jwk, "additional-evidence": additional}
	return m, w.digest(m)
}

func (w *world) digest(m map[string]any) []byte {
	w.t.Helper()
	text, err := kbs.Canonical(m)
	w.must(err)
	sum := sha512.Sum384(text)
	return sum[:]
}

func sampleEvidence(reportData []byte) json.RawMessage {
	return json.RawMessage(`{"svn":"1","report_data":"` + base64.StdEncoding.EncodeToString(reportData) + `"}`)
}

// sampleItems is the evidence of a guest with a device.
func (w *world) sampleItems() []attestation.Item {
	w.t.Helper()
	main, _ := w.runtime("")
	device := map[string]any{"nonce": main["nonce"], "tee-pubkey": main["tee-pubkey"]}
	reportData := w.digest(device)
	evidence := sampleEvidence(reportData)
	main["additional-evidence"] = `{"sampledevice":` + string(evidence) + `}`
	mainData := w.digest(main)
	_, sum, err := initdata.Digest([]byte(initToml))
	w.must(err)
	return []attestation.Item{
		{TEE: "sample", Evidence: sampleEvidence(mainData), ReportData: mainData, Runtime: main, InitData: sum, InitTOML: initToml},
		{TEE: "sampledevice", Evidence: evidence, ReportData: reportData, Runtime: device},
	}
}

// tpmItems is the evidence of a guest with a TPM, as after its measured boot.
func (w *world) tpmItems() []attestation.Item {
	w.t.Helper()
	runtime, reportData := w.runtime("")
	e, err := w.tpm.Evidence(reportData[:32])
	w.must(err)
	raw, err := json.Marshal(e)
	w.must(err)
	return []attestation.Item{{TEE: "tpm", Evidence: raw, ReportData: reportData, Runtime: runtime}}
}
