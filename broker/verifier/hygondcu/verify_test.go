package hygondcu

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/tee/csv/csvtest"
)

var ctx = context.Background()

type store map[string][]byte

func (s store) HSKCEK(_ context.Context, serial string) ([]byte, error) {
	if b, ok := s[serial]; ok {
		return b, nil
	}
	return nil, errors.New("not here")
}

func pki(t testing.TB) *csvtest.PKI {
	t.Helper()
	p, err := csvtest.New()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func list64(b []byte) []int {
	out := make([]int, len(b))
	for i, v := range b {
		out[i] = int(v)
	}
	return out
}

// body makes a report body; change may alter the JSON after it was signed.
func body(t testing.TB, key csvtest.Key, chip, userData string, change func(body, sig map[string]any)) map[string]any {
	t.Helper()
	pad := func(s string, n int) []byte { return append([]byte(s), make([]byte, n-len(s))...) }
	le := binary.LittleEndian
	signed := le.AppendUint32(nil, 2)
	signed = slices.Concat(signed, pad(chip, 16), pad(userData, 64), pad("measure", 32), pad("reserved", 128))
	signed = le.AppendUint32(signed, 0x1004)
	signed = le.AppendUint32(signed, 4)
	sig, err := key.Sign(signed)
	if err != nil {
		t.Fatal(err)
	}
	b := map[string]any{
		"version": 2, "chip_id": list64(pad(chip, 16)), "user_data": list64(pad(userData, 64)), "measure": list64(pad("measure", 32)),
		"reserved": list64(pad("reserved", 128)), "sig_usage": 0x1004, "sig_algo": 4,
	}
	s := map[string]any{"r": list64(sig[:72]), "s": list64(sig[72:])}
	if change != nil {
		change(b, s)
	}
	return map[string]any{"body": b, "sig": s}
}

func wrap(t testing.TB, reports ...any) json.RawMessage {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"attestation_reports": reports})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestVerify(t *testing.T) {
	p := pki(t)
	o := Options{ExpectedReportData: []byte("nonce"), Root: p.Root, Endorsements: store{"CHIP1": p.Chain, "CHIP2": p.Chain}}
	raw := wrap(t, body(t, p.CEK, "CHIP1", "nonce", nil), body(t, p.CEK, "CHIP2", "nonce", nil))
	claims, err := Verify(ctx, raw, o)
	if err != nil {
		t.Fatal(err)
	}
	second := claims["1"].(map[string]any)["body"].(map[string]any)
	if len(claims) != 2 || second["sig_usage"] != "1004" || second["version"] != int64(2) ||
		second["chip_id"] != "43484950320000000000000000000000" {
		t.Errorf("claims = %v", claims)
	}
}

func TestRefused(t *testing.T) {
	p, other := pki(t), pki(t)
	good := body(t, p.CEK, "CHIP1", "nonce", nil)
	o := Options{ExpectedReportData: []byte("nonce"), Root: p.Root, Endorsements: store{"CHIP1": p.Chain}}
	withOptions := func(change func(o *Options)) Options {
		c := o
		change(&c)
		return c
	}
	changed := func(change func(body, sig map[string]any)) json.RawMessage {
		return wrap(t, body(t, p.CEK, "CHIP1", "nonce", change))
	}
	for name, c := range map[string]struct {
		raw json.RawMessage
		o   Options
		why string
	}{
		"no reports":         {wrap(t), o, "0 reports"},
		"not JSON":           {json.RawMessage(`[`), o, "reading"},
		"too many":           {wrap(t, slices.Repeat([]any{good}, 65)...), o, "65 reports"},
		"second is bad":      {wrap(t, good, body(t, other.CEK, "CHIP1", "nonce", nil)), o, "attestation_reports[1]"},
		"other session":      {wrap(t, good), withOptions(func(o *Options) { o.ExpectedReportData = []byte("n") }), "user_data = "},
		"no report data":     {wrap(t, good), withOptions(func(o *Options) { o.ExpectedReportData = nil }), "report data of 0"},
		"unknown chip":       {wrap(t, body(t, p.CEK, "CHIP9", "nonce", nil)), o, "CHIP9"},
		"no store":           {wrap(t, good), withOptions(func(o *Options) { o.Endorsements = nil }), "no store"},
		"Hygon's root":       {wrap(t, good), withOptions(func(o *Options) { o.Root = nil }), "HSK"},
		"other key":          {wrap(t, body(t, p.PEK, "CHIP1", "nonce", nil)), o, "signature"},
		"path as chip":       {wrap(t, body(t, p.CEK, "../../etc", "nonce", nil)), o, "chip_id"},
		"version altered":    {changed(func(b, _ map[string]any) { b["version"] = 3 }), o, "signature"},
		"usage altered":      {changed(func(b, _ map[string]any) { b["sig_usage"] = 0 }), o, "signature"},
		"algorithm altered":  {changed(func(b, _ map[string]any) { b["sig_algo"] = 0 }), o, "signature"},
		"measure altered":    {changed(func(b, _ map[string]any) { b["measure"].([]int)[31] = 1 }), o, "signature"},
		"reserved altered":   {changed(func(b, _ map[string]any) { b["reserved"].([]int)[127] = 1 }), o, "signature"},
		"short measure":      {changed(func(b, _ map[string]any) { b["measure"] = []int{1} }), o, "measure has 1"},
		"no body":            {changed(func(b, _ map[string]any) { clear(b) }), o, "chip_id has 0"},
		"byte of 256":        {changed(func(b, _ map[string]any) { b["measure"].([]int)[0] = 256 }), o, "256"},
		"short r":            {changed(func(_, s map[string]any) { s["r"] = s["r"].([]int)[:71] }), o, "sig.r has 71"},
		"r with a high byte": {changed(func(_, s map[string]any) { s["r"].([]int)[71] = 1 }), o, "longer"},
		"zero signature": {changed(func(_, s map[string]any) {
			s["r"], s["s"] = make([]int, 72), make([]int, 72)
		}), o, "signature"},
	} {
		if _, err := Verify(ctx, c.raw, c.o); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: got %v, expected a refusal with %q", name, err, c.why)
		}
	}
	if _, err := Verify(ctx, wrap(t, good), withOptions(func(o *Options) { o.Endorsements = store{} })); !errors.Is(err, ErrNoEndorsement) {
		t.Errorf("unknown chip: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	p := pki(f)
	f.Add([]byte(wrap(f, body(f, p.CEK, "CHIP1", "nonce", nil))))
	f.Add([]byte(`{"attestation_reports":[{}]}`))
	o := Options{ExpectedReportData: []byte("nonce"), Root: p.Root, Endorsements: store{"CHIP1": p.Chain}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		claims, err := Verify(ctx, raw, o)
		if err == nil && len(claims) == 0 {
			t.Fatal("neither claims nor an error")
		}
	})
}
