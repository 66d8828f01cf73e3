package amdkds

import (
	"bytes"
	"context"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/web"
	"github.com/cloister/cloister/tee/snp"
	"github.com/cloister/cloister/test/evidence"
)

func TestAddresses(t *testing.T) {
	chip := bytes.Repeat([]byte{0xab}, 64)
	milan, err := VCEKKey(snp.Milan, chip, snp.TCB{BootLoader: 3, SNP: 8, Microcode: 115})
	if err != nil {
		t.Fatal(err)
	}
	turin, err := VCEKKey(snp.Turin, chip[:8], snp.TCB{FMC: 1, BootLoader: 2, TEE: 3, SNP: 4, Microcode: 255})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		key  collateral.Key
		want string
	}{
		{milan, "/vcek/v1/Milan/" + strings.Repeat("ab", 64) + "?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115"},
		{turin, "/vcek/v1/Turin/abababababababab?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=255"},
		{ChainKey(snp.Genoa, false), "/vcek/v1/Genoa/cert_chain"},
		{ChainKey(snp.Genoa, true), "/vlek/v1/Genoa/cert_chain"},
		{CRLKey(snp.Milan, false), "/vcek/v1/Milan/crl"},
		{CRLKey(snp.Turin, true), "/vlek/v1/Turin/crl"},
	} {
		if err := tc.key.Validate(); err != nil {
			t.Error(err)
		}
		if got, err := path(tc.key); err != nil || got != tc.want {
			t.Errorf("%s is asked for at %s (%v), want %s", tc.key, got, err, tc.want)
		}
	}
	for _, tc := range []struct {
		line snp.Line
		chip []byte
	}{{snp.Turin, chip}, {snp.Milan, chip[:8]}, {0, chip}} {
		if _, err := VCEKKey(tc.line, tc.chip, snp.TCB{}); err == nil {
			t.Errorf("line %s takes a chip id of %d bytes", tc.line, len(tc.chip))
		}
	}
}

// TestRecorded serves a real certificate, and what a broken mirror may give in its place.
func TestRecorded(t *testing.T) {
	report, err := snp.Parse(evidence.Read(t, "amd-sev-snp/genoa-v3/report.bin"))
	if err != nil {
		t.Fatal(err)
	}
	vcek := evidence.Read(t, "amd-sev-snp/genoa-v3/vcek.der")
	var path string
	answer := vcek
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path = r.URL.String()
		w.Write(answer)
	}))
	defer s.Close()
	kds, err := New(s.URL+"/", web.New(web.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	ask := func() ([]byte, error) {
		cache, err := collateral.New(collateral.Options{Now: func() time.Time { return time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC) }}, kds)
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		tcb := snp.DecodeTCB(snp.Genoa, report.ReportedTCB)
		return Certificates{cache}.VCEK(context.Background(), snp.Genoa, report.ChipID[:], tcb)
	}
	got, err := ask()
	if err != nil || !bytes.Equal(got, vcek) {
		t.Fatalf("got %d bytes, %v", len(got), err)
	}
	want := "/vcek/v1/Genoa/" + hex.EncodeToString(report.ChipID[:]) + "?blSPL=10&teeSPL=00&snpSPL=23&ucodeSPL=84"
	if path != want {
		t.Errorf("asked for %s, want %s", path, want)
	}
	for name, wrong := range map[string][]byte{
		"another chip's": evidence.Read(t, "amd-sev-snp/milan-v2-vcek/vcek.der"),
		"cut":            vcek[:len(vcek)-1],
		"a page":         []byte("<html>"),
		"nothing":        {},
	} {
		answer = wrong
		if _, err := ask(); err == nil || !strings.Contains(err.Error(), "AMD KDS: ") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
