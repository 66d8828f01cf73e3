package azurevtpm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/azurevtpm"
	"github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/broker/verifier/snp/snptest"
	tee "github.com/cloister/cloister/tee/snp"
)

var now = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)

var nonce = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")

type keys struct {
	platform *snptest.Platform
	ak, ak2  *rsa.PrivateKey
}

var made = sync.OnceValues(func() (keys, error) {
	p, err := snptest.New(tee.Milan, now)
	if err != nil {
		return keys{}, err
	}
	ak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return keys{}, err
	}
	ak2, err := rsa.GenerateKey(rand.Reader, 2048)
	return keys{platform: p, ak: ak, ak2: ak2}, err
})

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// vm is a confidential VM whose parts a test can change before its evidence is made.
type vm struct {
	keys
	tdx      bool
	nonce    []byte // of the TPM quote
	userData []byte
	pcrs     [24][]byte
	report   func(b []byte)              // changes the SNP report before it is signed
	td       func(b []byte)              // changes the TDREPORT
	hcl      func(b []byte)              // changes the HCL report at last
	bitmap   []byte                      // of the registers in the quote
	digest   func(d []byte)              // changes the register digest in the quote
	signWith *rsa.PrivateKey             // the quote
	hash     func(runtime []byte) []byte // report data of the hardware
	vcek     []byte
	tdQuote  []byte
	version  int
	wire     func(m map[string]any)
}

func newVM(t testing.TB, tdx bool) *vm {
	t.Helper()
	k := must[keys](t)(made())
	v := &vm{keys: k, tdx: tdx, nonce: nonce, userData: append(bytes.Clone(nonce), make([]byte, 16)...), bitmap: []byte{255, 255, 255},
		signWith: k.ak, version: 2, tdQuote: []byte("a TD quote")}
	v.vcek = must[[]byte](t)(k.platform.VCEK(snptest.LeafOptions{}))
	for i := range v.pcrs {
		v.pcrs[i] = bytes.Repeat([]byte{byte(i)}, 32)
	}
	v.hash = func(runtime []byte) []byte {
		sum := sha256.Sum256(runtime)
		return append(sum[:], make([]byte, 32)...)
	}
	return v
}

func (v *vm) runtime() []byte {
	return fmt.Appendf(nil, `{"keys":[{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":"AQAB","n":"%s"}],`+
		`"vm-configuration":{},"user-data":"%X"}`,
		base64.RawURLEncoding.EncodeToString(v.ak.N.Bytes()), v.userData)
}

func (v *vm) hclReport(t testing.TB) []byte {
	runtime := v.runtime()
	b := make([]byte, 2600)
	le := binary.LittleEndian
	copy(b, "HCLA")
	typ := uint32(2)
	if v.tdx {
		typ = 4
	}
	for at, n := range map[int]uint32{4: 2, 8: uint32(1236 + len(runtime)), 12: 2, 1216: uint32(20 + len(runtime)), 1220: 1,
		1224: typ, 1228: 1, 1232: uint32(len(runtime))} {
		le.PutUint32(b[at:], n)
	}
	copy(b[1236:], runtime)
	if v.tdx {
		b[32] = 0x81
		copy(b[32+128:], v.hash(runtime))
		if v.td != nil {
			v.td(b[32:][:1024])
		}
	} else {
		r := v.platform.Report(3, v.hash(runtime))
		if v.report != nil {
			v.report(r)
		}
		copy(b[32:], must[[]byte](t)(v.platform.Sign(r)))
	}
	if v.hcl != nil {
		v.hcl(b)
	}
	return b
}

func (v *vm) quote(t testing.TB) (message, signature []byte) {
	be := binary.BigEndian
	m := []byte{0xff, 'T', 'C', 'G', 0x80, 0x18, 0, 2, 0, 11}
	m = append(be.AppendUint16(m, uint16(len(v.nonce))), v.nonce...)
	m = append(m, make([]byte, 17+8)...)
	m = append(m, 0, 0, 0, 1, 0, 11, byte(len(v.bitmap)))
	m = append(m, v.bitmap...)
	h := sha256.New()
	for i, p := range v.pcrs {
		if v.bitmap[i/8]&(1<<(i%8)) != 0 {
			h.Write(p)
		}
	}
	digest := h.Sum(nil)
	if v.digest != nil {
		v.digest(digest)
	}
	m = append(be.AppendUint16(m, 32), digest...)
	sum := sha256.Sum256(m)
	return m, must[[]byte](t)(rsa.SignPKCS1v15(rand.Reader, v.signWith, crypto.SHA256, sum[:]))
}

func octets(b []byte) []int {
	out := make([]int, len(b))
	for i, v := range b {
		out[i] = int(v)
	}
	return out
}

// evidence is the VM's evidence in the form of v.version.
func (v *vm) evidence(t testing.TB) json.RawMessage {
	t.Helper()
	message, signature := v.quote(t)
	report := v.hclReport(t)
	hexOf := func(b []byte) any { return hex.EncodeToString(b) }
	b64 := func(b []byte) any { return base64.RawURLEncoding.EncodeToString(b) }
	m := map[string]any{"version": v.version}
	if v.version == 0 {
		hexOf = func(b []byte) any { return octets(b) }
		b64 = hexOf
		m = map[string]any{}
	}
	var pcrs []any
	for _, p := range v.pcrs {
		pcrs = append(pcrs, hexOf(p))
	}
	q := map[string]any{"signature": hexOf(signature), "message": hexOf(message), "pcrs": pcrs}
	switch {
	case v.tdx:
		m["tpm_quote"], m["hcl_report"], m["td_quote"] = q, b64(report), b64(v.tdQuote)
	case v.version == 0:
		m["quote"], m["report"], m["vcek"] = q, b64(report), pemOf(v.vcek)
	default:
		m["tpm_quote"], m["hcl_report"], m["vcek"] = q, b64(report), b64(v.vcek)
	}
	if v.wire != nil {
		v.wire(m)
	}
	return must[[]byte](t)(json.Marshal(m))
}

func pemOf(der []byte) string {
	return "-----BEGIN CERTIFICATE-----\n" + base64.StdEncoding.EncodeToString(der) + "\n-----END CERTIFICATE-----\n"
}

func (v *vm) options(t testing.TB) azurevtpm.Options {
	return azurevtpm.Options{ExpectedReportData: nonce, Now: now, Roots: must[*snp.Roots](t)(snp.ParseRoots(v.platform.RootsPEM()))}
}

func (v *vm) verify(t testing.TB, o azurevtpm.Options) (map[string]any, error) {
	if !v.tdx {
		return azurevtpm.VerifySNP(context.Background(), v.evidence(t), o)
	}
	td := &fakeTD{want: v.tdQuote, reportData: v.hash(v.runtime())}
	return azurevtpm.VerifyTDX(context.Background(), v.evidence(t), o, td)
}

// fakeTD believes one quote.
type fakeTD struct {
	want, reportData []byte
}

func (f *fakeTD) VerifyTDQuote(_ context.Context, quote []byte, at time.Time) (map[string]any, []byte, error) {
	if !bytes.Equal(quote, f.want) || !at.Equal(now) {
		return nil, nil, errors.New("quote does not verify")
	}
	return map[string]any{"tcb_status": "UpToDate", "init_data": "of the quote", "report_data": "of the quote"}, f.reportData, nil
}
