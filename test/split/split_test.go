// Package split_test runs key broker, attestation service and reference values as three processes.
package split_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker"
	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/clientcert/certtest"
	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/test/faketpm"
	"github.com/cloister/cloister/test/freeport"
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

// process is one of the three.
type process struct {
	t     *testing.T
	dir   string
	ca    string // file of who certified it
	cmd   *exec.Cmd
	log   *bytes.Buffer
	ready broker.Ready
}

// newProcess writes certificate and configuration.
func newProcess(t *testing.T, ca *certtest.CA, config string) *process {
	t.Helper()
	p := &process{t: t, dir: t.TempDir()}
	certtest.WritePair(t, p.dir, ca.Issue(x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, time.Now()))
	p.ca = certtest.Write(t, filepath.Join(p.dir, "ca.pem"), ca.PEM())
	text := "data_dir = \"data\"\n[server]\nlisten = \"127.0.0.1:0\"\ntls_certificate = \"tls.crt\"\ntls_key = \"tls.key\"\n" + config
	certtest.Write(t, filepath.Join(p.dir, "broker.toml"), []byte(text))
	return p
}

// start waits until the process answers.
func (p *process) start() *process {
	p.t.Helper()
	p.log = &bytes.Buffer{}
	p.cmd = exec.Command(os.Args[0], "serve", "--config", filepath.Join(p.dir, "broker.toml"), "--log-level", "warn")
	p.cmd.Env = append(os.Environ(), asBroker+"=1")
	p.cmd.Stderr = p.log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.ready)
	}
	if err != nil {
		p.kill()
		p.t.Fatalf("the broker says %q, %v; its log:\n%s", line, err, p.log)
	}
	p.t.Cleanup(p.kill)
	return p
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *process) token() string { return filepath.Join(p.dir, "data", broker.AdminTokenFile) }

func (p *process) admin() *client.Client {
	p.t.Helper()
	c, err := client.New(client.Config{URL: p.ready.URL, CertificateFile: p.ca, AdminTokenFile: p.token()})
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// split is the three processes and a guest.
type split struct {
	t                          *testing.T
	values, attestation, store *process
	tpm                        *faketpm.TPM
}

func newSplit(t *testing.T) *split {
	t.Helper()
	w := &split{t: t}
	var err error
	w.tpm, err = faketpm.New(time.Now())
	w.must(err)
	for _, pcr := range []int{0, 4, 7, 9} {
		w.tpm.Measure(pcr, []byte{byte(pcr)})
	}
	_, sum, err := initdata.Digest([]byte(document))
	w.must(err)
	w.tpm.Extend(8, sum)
	now := time.Now()
	// Each has an authority of its own: none is believed because another is.
	rvps := fmt.Sprint("127.0.0.1:", freeport.TCP(t)) // they are away for a while
	w.values = newProcess(t, certtest.New(t, "values", now), fmt.Sprintf("[attestation_api]\ngrpc_listen = %q\n", rvps)).start()
	w.attestation = newProcess(t, certtest.New(t, "attestation", now), fmt.Sprintf(
		"[attestation_api]\ngrpc_listen = \"127.0.0.1:0\"\nrest_listen = \"127.0.0.1:0\"\n"+
			"[reference_values.remote]\naddress = \"https://%s\"\nca_certs = [%q]\nadmin_token_file = %q\ncache_ms = -1\ntimeout_ms = 20000\n",
		rvps, w.values.ca, w.values.token())).start()
	w.store = newProcess(t, certtest.New(t, "store", now), fmt.Sprintf(
		"[attestation]\nbackend = \"coco-as-grpc\"\n[attestation.coco_as]\naddress = %q\nca_certs = [%q]\njwk_sets = [%q]\nadmin_token_file = %q\ntimeout_ms = 30000\n",
		w.attestation.ready.AttestationGRPC, w.attestation.ca, w.attestation.ready.AttestationREST, w.attestation.token())).start()
	return w
}

func (w *split) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// fetch is one guest's handshake and the secret it gets.
func (w *split) fetch() (string, error) {
	w.t.Helper()
	ca, err := os.ReadFile(w.store.ca)
	w.must(err)
	guest, err := attest.NewKBSClient(attest.KBSConfig{URL: w.store.ready.URL, RootPEM: string(ca), InitData: document}, faketpm.NewAttester(w.tpm))
	w.must(err)
	uri, err := kbs.ParseResourceURI("kbs:///default/key/1")
	w.must(err)
	ctx, cancel := context.WithTimeout(w.t.Context(), 50*time.Second)
	defer cancel()
	got, err := guest.Resource(ctx, uri)
	return string(got), err
}

// lastAttestation is the id of the latest verdict that the key broker has.
func (w *split) lastAttestation() string {
	w.t.Helper()
	entries, err := w.store.admin().Audit(w.t.Context(), 0)
	w.must(err)
	id := ""
	for _, e := range entries {
		if e.Event == "attest" && e.Attestation != "" {
			id = e.Attestation
		}
	}
	return id
}

// TestThreeProcesses: values and policies that are set at the key broker arrive where they belong, what is refused can be explained, and
// while the values are away guests are told to come again.
func TestThreeProcesses(t *testing.T) {
	w := newSplit(t)
	ctx := t.Context()
	admin := w.store.admin()
	w.must(admin.PutResource(ctx, "default/key/1", []byte("the secret")))
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("a guest that nobody approved: %v", err)
	}
	// The verdict can be explained where the guest came to, which names the record of the service that made it.
	id := w.lastAttestation()
	rec, err := admin.Explain(ctx, id)
	if err != nil || rec.TEE != "tpm" || len(rec.Parts) != 1 || rec.Parts[0].Status == "affirming" || len(rec.Parts[0].Vector) == 0 {
		t.Fatalf("explained at the key broker: %+v, %v", rec, err)
	}
	_, there, _ := strings.Cut(rec.Parts[0].Findings[0].Expression, "appraised as request ")
	if there, _, _ = strings.Cut(there, " "); there == "" {
		t.Fatalf("the explanation names no record of the service: %v", rec.Parts[0].Findings)
	}
	if origin, err := w.attestation.admin().Explain(ctx, there); err != nil || !strings.Contains(fmt.Sprint(origin.Parts[0].Findings), "trusted_aks") {
		t.Errorf("explained at the attestation service: %+v, %v", origin, err)
	}

	ak, err := w.tpm.AKPublic()
	w.must(err)
	approved := map[string]any{"tpm_init_data": []string{w.tpm.PCR(8)}, "trusted_aks": []string{ak}}
	for _, i := range []int{0, 4, 7, 9} {
		approved[fmt.Sprintf("tpm_pcr%02d", i)] = []string{w.tpm.PCR(i)}
	}
	w.must(admin.RegisterReferenceValues(ctx, approved))
	records, err := w.values.admin().ListReferenceValues(ctx)
	if err != nil || len(records) != len(approved) {
		t.Errorf("values that were set at the key broker, at the third process: %d, %v; want %d", len(records), err, len(approved))
	}
	if got, err := w.fetch(); err != nil || got != "the secret" {
		t.Fatalf("an approved guest gets %q, %v; attestation service:\n%s\nkey broker:\n%s", got, err, w.attestation.log, w.store.log)
	}

	w.values.kill()
	_, err = w.fetch()
	if err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("without the values: %v, want 503", err)
	}
	var refused *kbs.ErrorInformation
	if !errors.As(err, &refused) {
		t.Errorf("without the values: %v, which does not say why", err)
	}
	w.values.start()
	if got, err := w.fetch(); err != nil || got != "the secret" {
		t.Errorf("with the values back the guest gets %q, %v", got, err)
	}

	// A policy by which nobody is good, set at the key broker, is what the attestation service judges by.
	w.must(admin.SetAttestationPolicy(ctx, "default_cpu", "package policy\nimport rego.v1\ntrust_claims := {\"hardware\": 97}\n"))
	if _, err := w.fetch(); err == nil {
		t.Error("the policy that was set at the key broker does not count")
	}
	if rec, err := admin.Explain(ctx, w.lastAttestation()); err != nil || rec.Parts[0].Status != "contraindicated" {
		t.Errorf("explained after the policy: %+v, %v", rec, err)
	}
	entries, err := w.attestation.admin().Audit(ctx, 0)
	w.must(err)
	found := false
	for _, e := range entries {
		found = found || e.Event == "attestation-policy" && e.Subject == "default_cpu" && strings.HasPrefix(e.Reason, "done by")
	}
	if !found {
		t.Error("the audit log of the attestation service has no policy")
	}
	// What the protocol cannot do is said, and is not a fault of the broker.
	_, err = admin.ListReferenceValues(ctx)
	var answer *client.StatusError
	if !errors.As(err, &answer) || answer.Status == http.StatusInternalServerError {
		t.Errorf("listing values at the key broker: %v", err)
	}
}

// TestServiceIsAway kills the attestation service: guests come again, and a guest in the middle is not refused for good.
func TestServiceIsAway(t *testing.T) {
	w := newSplit(t)
	w.attestation.kill()
	if _, err := w.fetch(); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("without the attestation service: %v, want 503", err)
	}
	if _, err := w.store.admin().Status(t.Context()); err != nil {
		t.Errorf("the key broker's status without the service: %v", err)
	}
}
