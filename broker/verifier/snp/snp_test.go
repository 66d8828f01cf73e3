package snp_test

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/broker/verifier/snp/snptest"
	"github.com/cloister/cloister/tee/snp"
)

var now = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

// machines are made once, since RSA keys take their time.
var machines = map[snp.Line]func() (*snptest.Platform, error){
	snp.Milan: sync.OnceValues(func() (*snptest.Platform, error) { return snptest.New(snp.Milan, now) }),
	snp.Genoa: sync.OnceValues(func() (*snptest.Platform, error) { return snptest.New(snp.Genoa, now) }),
	snp.Turin: sync.OnceValues(func() (*snptest.Platform, error) { return snptest.New(snp.Turin, now) }),
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func machine(t testing.TB, line snp.Line) *snptest.Platform {
	t.Helper()
	return must[*snptest.Platform](t)(machines[line]())
}

var nonce = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")

func options(t testing.TB, p *snptest.Platform) verifier.Options {
	return verifier.Options{
		ExpectedReportData: nonce, Now: now, Roots: must[*verifier.Roots](t)(verifier.ParseRoots(p.RootsPEM())),
	}
}

// source is a fake source of certificates.
type source struct {
	vcek, crl []byte
	err       error
	asked     []string
}

func (s *source) VCEK(_ context.Context, line snp.Line, chipID []byte, tcb snp.TCB) ([]byte, error) {
	s.asked = append(s.asked, line.String()+" "+hex.EncodeToString(chipID)+" "+tcb.String())
	return s.vcek, s.err
}

func (s *source) CRL(_ context.Context, line snp.Line, vlek bool) ([]byte, error) {
	if s.crl == nil {
		return nil, errors.New("the key server does not answer")
	}
	return s.crl, nil
}

// made is evidence of a machine, with changes to the report before it is signed.
func made(t testing.TB, p *snptest.Platform, version uint32, change func(report []byte), certs ...snptest.Cert) json.RawMessage {
	t.Helper()
	b := p.Report(version, nonce)
	if change != nil {
		change(b)
	}
	return must[json.RawMessage](t)(snptest.Evidence(must[[]byte](t)(p.Sign(b)), certs...))
}

func vcek(t testing.TB, p *snptest.Platform) snptest.Cert {
	t.Helper()
	return snptest.Cert{Type: "VCEK", Data: must[[]byte](t)(p.VCEK(snptest.LeafOptions{}))}
}

func refused(t *testing.T, what string, evidence json.RawMessage, o verifier.Options, why string) {
	t.Helper()
	claims, err := verifier.Verify(context.Background(), evidence, o)
	if err == nil {
		t.Errorf("%s is accepted with claims %v", what, claims)
	} else if !strings.Contains(err.Error(), why) {
		t.Errorf("%s: error is %q, expected it to speak of %q", what, err, why)
	}
}

func TestVerify(t *testing.T) {
	for _, line := range snp.Lines() {
		p := machine(t, line)
		leaf := vcek(t, p)
		for _, version := range []uint32{2, 3, 4, 5} {
			if version == 2 && line == snp.Turin {
				continue // Turin never made version 2, and JSON has no place for its TCB in it
			}
			claims, err := verifier.Verify(context.Background(), made(t, p, version, nil, leaf), options(t, p))
			if err != nil {
				t.Fatalf("%s version %d: %v", line, version, err)
			}
			for name, want := range map[string]any{
				"policy_abi_major": int64(0), "policy_abi_minor": int64(0x1f), "policy_smt_allowed": true, "policy_migrate_ma": false,
				"policy_debug_allowed": false, "policy_single_socket": false, "reported_tcb_bootloader": int64(4),
				"reported_tcb_tee": int64(1), "reported_tcb_snp": int64(0x18), "reported_tcb_microcode": int64(0xdb),
				"platform_tsme_enabled": false, "platform_smt_enabled": true, "measurement": hex.EncodeToString(p.Report(2, nil)[0x90:0xc0]),
				"report_data": hex.EncodeToString(nonce) + strings.Repeat("0", 32), "init_data": strings.Repeat("0", 64),
				"chip_id":       hex.EncodeToString(p.HWID) + strings.Repeat("00", 64-len(p.HWID)),
				"signing_key":   "VCEK",
				"cert_validity": "valid", "product": line.String(), "vmpl": int64(0), "report_version": int64(version),
				"cert_revocation": "unavailable: no source of CRLs is configured", "chip_id_masked": false, "host_requested": false,
			} {
				if claims[name] != want {
					t.Errorf("%s version %d: claim %s is %v, expected %v", line, version, name, claims[name], want)
				}
			}
		}
	}
}

func TestVLEK(t *testing.T) {
	p := machine(t, snp.Milan)
	cert := snptest.Cert{Type: "VLEK", Data: must[[]byte](t)(p.VLEK(snptest.LeafOptions{}))}
	asVLEK := func(b []byte) { b[0x48] = 1 << 2; clear(b[0x1a0:0x1e0]) }
	claims, err := verifier.Verify(context.Background(), made(t, p, 3, asVLEK, cert), options(t, p))
	if err != nil {
		t.Fatal(err)
	}
	if claims["signing_key"] != "VLEK" || claims["csp_id"] != "CN=cloud.example" || claims["chip_id_masked"] != true {
		t.Errorf("claims are %v", claims)
	}
	refused(t, "a VLEK report with a VCEK", made(t, p, 3, asVLEK, vcek(t, p)), options(t, p), "signing key")
	refused(t, "a VCEK report with a VLEK", made(t, p, 3, nil, cert), options(t, p), "signing key")
	refused(t, "a VLEK report without certificate", made(t, p, 3, asVLEK), withSource(options(t, p), &source{}), "only a VCEK")
	byASK := must[[]byte](t)(p.VLEK(snptest.LeafOptions{Issuer: &p.ASK}))
	refused(t, "a VLEK signed by the ASK", made(t, p, 3, asVLEK, snptest.Cert{Type: "VLEK", Data: byASK}), options(t, p), "issued by")
}

func withSource(o verifier.Options, s *source) verifier.Options {
	o.Certificates = s
	return o
}

func TestBindings(t *testing.T) {
	p := machine(t, snp.Genoa)
	leaf := vcek(t, p)
	good := made(t, p, 3, func(b []byte) { copy(b[0xc0:], "the digest of the init-data, 32.") }, leaf)
	o := options(t, p)
	o.InitDataDigest = []byte("the digest of the init-data, 32.")
	if _, err := verifier.Verify(context.Background(), good, o); err != nil {
		t.Fatal(err)
	}
	o.InitDataDigest = []byte("the digest of the init-data, 32. and the rest of SHA-384")
	if _, err := verifier.Verify(context.Background(), good, o); err != nil {
		t.Errorf("a longer digest is not cut: %v", err)
	}
	for _, digest := range [][]byte{{}, []byte("the digest of the init-data, 33."), make([]byte, 32), []byte("the digest")} {
		o.InitDataDigest = digest
		refused(t, "init data "+string(digest), good, o, "init")
	}
	o = options(t, p)
	o.ExpectedReportData = append([]byte{1}, nonce...)
	refused(t, "other report data", good, o, "report_data is 3031")
	o.ExpectedReportData = nonce[:47]
	refused(t, "shorter report data", good, o, "report_data")
	o.ExpectedReportData = nil
	refused(t, "no report data", good, o, "no report data")
	o.Offline = true
	if _, err := verifier.Verify(context.Background(), good, o); err != nil {
		t.Errorf("offline: %v", err)
	}
	o.ExpectedReportData = nonce[:47]
	refused(t, "other report data offline", good, o, "report_data")
	o.ExpectedReportData, o.Now = nil, time.Time{}
	refused(t, "no time", good, o, "no time")

	for _, vmpl := range []uint32{1, 3, snp.HostVMPL} {
		e := made(t, p, 3, func(b []byte) {
			b[0x30], b[0x31], b[0x32], b[0x33] = byte(vmpl), byte(vmpl>>8), byte(vmpl>>16), byte(vmpl>>24)
		}, leaf)
		refused(t, "a lower VMPL", e, options(t, p), "vmpl")
		o := options(t, p)
		o.Offline = true
		claims, err := verifier.Verify(context.Background(), e, o)
		if err != nil || claims["vmpl"] != int64(vmpl) || claims["host_requested"] != (vmpl == snp.HostVMPL) {
			t.Errorf("VMPL %d offline: %v, %v", vmpl, claims, err)
		}
	}
}

func TestPolicyClaims(t *testing.T) {
	p := machine(t, snp.Milan)
	for claim, bit := range map[string]byte{
		"policy_debug_allowed": 1 << 3, "policy_migrate_ma": 1 << 2, "policy_single_socket": 1 << 4,
	} {
		claims, err := verifier.Verify(context.Background(), made(t, p, 3, func(b []byte) { b[0x0a] |= bit }, vcek(t, p)), options(t, p))
		if err != nil || claims[claim] != true {
			t.Errorf("%s: %v, %v", claim, claims[claim], err)
		}
	}
}

func TestReportRefused(t *testing.T) {
	p := machine(t, snp.Milan)
	leaf := vcek(t, p)
	for name, c := range map[string]struct {
		change func(b []byte)
		why    string
	}{
		"version 6":        {func(b []byte) { b[0] = 6 }, "version"},
		"algorithm 0":      {func(b []byte) { b[0x34] = 0 }, "algorithm"},
		"bit 17 clear":     {func(b []byte) { b[0x0a] &^= 2 }, "bit 17"},
		"no signing key":   {func(b []byte) { b[0x48] = 7 << 2 }, "signing key"},
		"reserved key":     {func(b []byte) { b[0x48] = 3 << 2 }, "signing key"},
		"another chip":     {func(b []byte) { b[0x1a0] ^= 1 }, "chip id"},
		"last of the chip": {func(b []byte) { b[0x1df] ^= 1 }, "chip id"},
		"masked by flag":   {func(b []byte) { b[0x48] = 2 }, "hidden"},
		"masked by zero":   {func(b []byte) { clear(b[0x1a0:0x1e0]) }, "hidden"},
		"Genoa":            {func(b []byte) { b[0x189] = 0x11 }, "Genoa"},
		"boot loader":      {func(b []byte) { b[0x180]-- }, "reported TCB"},
		"tee":              {func(b []byte) { b[0x181]-- }, "reported TCB"},
		"snp":              {func(b []byte) { b[0x186]++ }, "reported TCB"},
		"microcode":        {func(b []byte) { b[0x187]++ }, "reported TCB"},
	} {
		refused(t, name, made(t, p, 3, c.change, leaf), options(t, p), c.why)
	}
	o := options(t, p)
	o.AllowMaskedChipID = true
	claims, err := verifier.Verify(context.Background(), made(t, p, 3, func(b []byte) { clear(b[0x1a0:0x1e0]) }, leaf), o)
	if err != nil || claims["chip_id_masked"] != true {
		t.Errorf("masked chip id, allowed: %v, %v", claims["chip_id_masked"], err)
	}
	flagged := func(b []byte) { b[0x48] = 2; b[0x1a0] ^= 1 }
	refused(t, "another chip that the host claims to hide", made(t, p, 3, flagged, leaf), o, "chip id")
	turin := machine(t, snp.Turin)
	refused(t, "fmc", made(t, turin, 5, func(b []byte) { b[0x180]++ }, vcek(t, turin)), options(t, turin), "reported TCB")
}

// TestTampered changes every byte of a signed report, and one bit of each.
func TestTampered(t *testing.T) {
	p := machine(t, snp.Turin)
	b := must[[]byte](t)(p.Sign(p.Report(5, nonce)))
	roots := options(t, p)
	roots.AllowMaskedChipID = true
	chain := verifier.Chain{Leaf: vcek(t, p).Data}
	check := func(b []byte) error {
		r, err := snp.Parse(b)
		if err != nil {
			return err
		}
		_, err = verifier.VerifyReport(context.Background(), r, chain, roots)
		return err
	}
	if err := check(b); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		old := b[i]
		b[i] ^= 1 << (i % 8)
		if err := check(b); err == nil {
			t.Errorf("byte %#x changed: accepted", i)
		}
		b[i] = old
	}
	clear(b[snp.SignedSize:])
	if err := check(b); err == nil {
		t.Error("a zero signature is accepted")
	}
}
