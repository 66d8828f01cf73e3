package judge_test

import (
	"testing"
	"time"

	"github.com/cloister/cloister/broker/judge"
	"github.com/cloister/cloister/test/fakedcap"
)

// TestIntelLists gives revocation lists beside a quote, with collateral that knows of no revocation.
func TestIntelLists(t *testing.T) {
	w := fakedcap.New(t, moment)
	other := fakedcap.New(t, moment)
	source := w.Source()
	quote := w.Quote(fakedcap.Spec{Body: fakedcap.TD(make([]byte, 64))})
	good := w.CRL(w.CA)
	w.Revoked = []*fakedcap.Cert{w.PCK}
	revoked := w.CRL(w.CA)
	w.Revoked = []*fakedcap.Cert{w.CA}
	authority := w.CRL(w.Root)
	w.Revoked, w.CRLUntil = nil, moment.Add(-time.Hour)
	for name, tc := range map[string]struct {
		list []byte
		want judge.Word
	}{
		"good": {good, judge.Valid}, "revoked": {revoked, judge.Invalid}, "authority": {authority, judge.Invalid},
		"old": {w.CRL(w.CA), judge.Expired}, "another key's": {other.CRL(other.CA), judge.Invalid},
		"another issuer's": {w.CRL(w.Issue("Intel SGX PCK Processor CA", w.Root, nil)), judge.Invalid},
		"no list":          {[]byte("x"), judge.Invalid},
	} {
		in := judge.Input{TEE: "tdx", Evidence: quote, Root: w.Root.PEM(), Collateral: source, CRLs: [][]byte{tc.list}, Time: moment}
		if v := judge.Judge(t.Context(), in); v.Word != tc.want {
			t.Errorf("%s: %s, want %s: %q", name, v.Word, tc.want, v.Reasons)
		}
	}
}
