// Package attestation_test lets a guest with a software TPM attest to a broker
// and fetch a secret: both ends of the protocol, nothing in between is faked.
package attestation_test

import (
	"context"
	"encoding/hex"
	"encoding/pem"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker"
	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/guest/hub"
	"github.com/cloister/cloister/test/swtpm"
	"github.com/cloister/cloister/wire/initdata"
)

const document = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n"

func TestGuestGetsSecret(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	machine := swtpm.Start(t)
	dir := t.TempDir()
	root := filepath.Join(dir, "maker.pem")
	must(os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: machine.Root.Raw}), 0o600))

	cfg := config.Default()
	cfg.DataDir = filepath.Join(dir, "data")
	cfg.Server.InsecureHTTP = true
	cfg.TPM.EKRoots = []string{root}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	b, err := broker.Open(ctx, cfg, broker.Options{Log: log, Version: "test", Now: time.Now})
	must(err)
	t.Cleanup(func() { must(b.Close()) })
	srv := httptest.NewServer(b.Handler())
	t.Cleanup(srv.Close)
	admin, err := client.New(client.Config{URL: srv.URL, AdminTokenFile: filepath.Join(cfg.DataDir, broker.AdminTokenFile)})
	must(err)
	must(admin.PutResource(ctx, "default/key/1", []byte("the secret")))

	tpm := attest.NewTPMOver(machine.Transport(), filepath.Join(dir, "no-log"))
	defer tpm.Close()
	_, sum, err := initdata.Digest([]byte(document))
	must(err)
	must(tpm.ExtendPCR(ctx, 8, sum))
	newHub := func() *hub.Hub {
		kbs, err := attest.NewKBSClient(attest.KBSConfig{URL: srv.URL, InitData: document, Log: log}, tpm)
		must(err)
		agent, err := attest.NewAgent(ctx, tpm, kbs, false, "", nil, log)
		must(err)
		h, err := hub.New(new(hub.Config), hub.Options{Broker: kbs, Agent: agent, Log: log})
		must(err)
		return h
	}

	h := newHub()
	_, err = h.Resource(ctx, "kbs:///default/key/1")
	if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "policy") {
		t.Errorf("before anything is registered: %v", err)
	}
	pcr := func(i int) string {
		v, err := tpm.ReadPCR(ctx, i)
		must(err)
		return hex.EncodeToString(v)
	}
	must(admin.RegisterReferenceValues(ctx, map[string]any{
		"tpm_pcr00": []string{pcr(0)}, "tpm_pcr04": []string{pcr(4)}, "tpm_pcr07": []string{pcr(7)}, "tpm_pcr09": []string{pcr(9)},
		"tpm_init_data": []string{pcr(8)},
	}))
	got, err := newHub().Resource(ctx, "kbs:///default/key/1")
	if err != nil || string(got) != "the secret" {
		t.Fatalf("got %q, %v", got, err)
	}
	// The kernel's register changes: the next attestation is refused and says why.
	must(tpm.ExtendPCR(ctx, 9, sum))
	_, err = newHub().Resource(ctx, "kbs:///default/key/1")
	if err == nil || !strings.Contains(err.Error(), "pcr09") {
		t.Errorf("after PCR 9 changed: %v", err)
	}
}
