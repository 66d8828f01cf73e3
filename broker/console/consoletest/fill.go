package consoletest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/console"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
)

func digest(of string) string {
	sum := sha256.Sum256([]byte(of))
	return hex.EncodeToString(sum[:])
}

// fill puts a few days of a small broker into the world.
func (w *World) fill(t testing.TB, refs *refstore.Store, gate *resource.Gate) {
	t.Helper()
	end := w.Now()
	at := func(before time.Duration) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.now = end.Add(-before)
	}
	at(360 * 24 * time.Hour)
	register(t, refs, "shop", "ann", map[string]any{"tpm_pcr04": []string{digest("kernel 6.11")},
		"tpm_pcr09": []string{digest("command line, last year")}})
	at(40 * 24 * time.Hour)
	register(t, refs, "", "ann", map[string]any{"tpm_pcr00": []string{digest("firmware")}, "tpm_pcr07": []string{digest("secure boot")}})
	register(t, refs, "shop", "ci (role release)", map[string]any{
		"tpm_pcr04": []string{digest("kernel 6.12")}, "tpm_pcr09": []string{digest("command line")},
		"tpm_init_data": []string{digest("shop.toml")},
	})
	register(t, refs, "billing", "ci (role release)", map[string]any{
		"tpm_pcr04": []string{digest("kernel 6.12")}, "tpm_init_data": []string{digest("billing.toml")},
		"snp_launch_measurement": []string{digest("snp a") + digest("snp b")[:32]},
	})
	for i, path := range []string{
		"billing/db/password", "billing/tls/key", "default/image-key/shop", "shop/api/token", "shop/luks/volume-0", "shop/luks/volume-1",
	} {
		at(time.Duration(90-10*i) * 24 * time.Hour)
		p, err := resource.ParsePath(resource.SplitPath(path))
		must(t, err)
		must(t, w.Resources.Put(t.Context(), p, []byte(Secret)))
		if i%2 == 0 {
			at(time.Duration(20-i) * 24 * time.Hour)
			must(t, w.Resources.Put(t.Context(), p, []byte(Secret+" "+Secret)))
		}
	}
	good := map[string]any{
		"ak_endorsement": "ek-certificate", "ak_public": "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE", "pcr00": digest("firmware"),
		"pcr04": digest("kernel 6.12"), "pcr07": digest("secure boot"), "pcr08": digest("shop.toml"), "pcr09": digest("command line"),
	}
	tpm := func(change map[string]any, initdata string) map[string]any {
		claims := maps.Clone(good)
		maps.Copy(claims, change)
		return map[string]any{"init_data": initdata, "tpm": claims}
	}
	at(3 * time.Hour)
	w.attest(t, refs, "tpm", tpm(nil, digest("billing.toml")))
	at(2 * time.Hour)
	w.attest(t, refs, "snp", map[string]any{"init_data": digest("shop.toml"), "snp": map[string]any{
		"cert_validity": "valid", "cert_revocation": "checked", "measurement": digest("snp x") + digest("snp y")[:32],
		"policy_debug_allowed": true,
		"policy_migrate_ma":    false, "reported_tcb_bootloader": 4, "reported_tcb_microcode": 72, "reported_tcb_snp": 22, "reported_tcb_tee": 0,
	}})
	at(40 * time.Minute)
	w.Bitten = w.attest(t, refs, "tpm", tpm(map[string]any{"pcr04": Hostile, "pcr09": Hostile, Hostile: Hostile}, Hostile))
	at(12 * time.Minute)
	w.Good = w.attest(t, refs, "tpm", tpm(nil, digest("shop.toml")))
	at(4 * time.Minute)
	w.Bad = w.attest(t, refs, "tpm", tpm(map[string]any{"pcr09": digest("command line with debug")}, digest("shop.toml")))
	w.Refused = w.refuse(t, gate, "shop/luks/volume-0", w.Bad, "warning")
	w.refuse(t, gate, "default/"+Hostile+"/x", w.Bitten, "warning")
	at(0)
}

// attest keeps the record of an attestation and its audit entry.
func (w *World) attest(t testing.TB, refs *refstore.Store, tee string, input map[string]any) string {
	t.Helper()
	ctx := context.Background()
	policy, err := w.Policies.Get(ctx, "default_cpu")
	must(t, err)
	part, err := Appraise(ctx, policy, refs, input)
	must(t, err)
	part.Name, part.TEE = "cpu0", tee
	id, err := decision.NewID(w.Now())
	must(t, err)
	r := decision.Record{ID: id, Time: w.Now(), Kind: decision.KindAttestation, Decision: audit.Allow, TEE: tee, Parts: []decision.Part{*part}}
	must(t, w.Decisions.Put(ctx, r))
	text, _ := r.Summary()
	must(t, w.Audit.Append(ctx, audit.Entry{
		Event: "attest", Decision: audit.Allow, RequestID: id, Remote: "192.0.2.40", TEE: tee, Status: "cpu0=" + part.Status, Reason: text,
	}))
	return id
}

// refuse keeps the record of a refused resource and its audit entry.
func (w *World) refuse(t testing.TB, gate *resource.Gate, path, attestation, status string) string {
	t.Helper()
	ctx := context.Background()
	claims := map[string]any{"submods": map[string]any{"cpu0": map[string]any{"ear.status": status}}}
	d, err := gate.Decide(ctx, resource.Request{Plugin: "resource", Path: resource.SplitPath(path), Claims: claims})
	must(t, err)
	id, err := decision.NewID(w.Now().Add(time.Second))
	must(t, err)
	r := decision.Record{
		ID: id, Time: w.Now(), Kind: decision.KindResource, Decision: audit.Deny, Subject: path, Policy: d.Policy, Findings: d.Findings,
		Reason: "the resource policy says no; the attestation was " + status, AttestationID: attestation,
	}
	must(t, w.Decisions.Put(ctx, r))
	must(t, w.Audit.Append(ctx, audit.Entry{
		Event: "resource-read", Decision: audit.Deny, RequestID: id, Remote: "192.0.2.40", Subject: path, Policy: d.Policy, Reason: r.Reason,
	}))
	return id
}

// Tenants keeps tenants in memory.
type Tenants struct {
	mu   sync.Mutex
	list []console.Tenant
}

func demoTenants() []console.Tenant {
	return []console.Tenant{
		{
			Name: "billing", Created: time.Date(2026, 1, 12, 8, 0, 0, 0, time.UTC),
			Quota: console.Quota{Resources: 50, Bytes: 1 << 20, RequestsPerSecond: 20}, Usage: console.Usage{Resources: 2, Bytes: 812_000},
		},
		{Name: "shop", Created: time.Date(2026, 2, 3, 8, 0, 0, 0, time.UTC), Usage: console.Usage{Resources: 3, Bytes: 140}},
	}
}

// List is that of console.Tenants.
func (s *Tenants) List(context.Context) ([]console.Tenant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]console.Tenant{}, s.list...), nil
}

// Create is that of console.Tenants.
func (s *Tenants) Create(_ context.Context, name string, q console.Quota) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.list {
		if t.Name == name {
			return "", fmt.Errorf("there is a tenant %s already", name)
		}
	}
	s.list = append(s.list, console.Tenant{Name: name, Created: time.Date(2026, 6, 1, 9, 30, 0, 0, time.UTC), Quota: q})
	return TenantToken, nil
}

// Delete is that of console.Tenants.
func (s *Tenants) Delete(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, t := range s.list {
		if t.Name == name {
			s.list = append(s.list[:i], s.list[i+1:]...)
			return nil
		}
	}
	return fmt.Errorf("tenant %s: %w", name, store.ErrNotFound)
}
