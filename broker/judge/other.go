package judge

import (
	"errors"

	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/broker/verifier/hygondcu"
)

// other judges evidence in JSON with the broker's own verifier of its kind.
func (j *judging) other() {
	if j.Others == nil {
		j.open(ParseOnly, "no verifier of %s evidence given, expected one", j.TEE)
		return
	}
	v, err := j.Others.Get(j.TEE)
	if err != nil {
		j.open(ParseOnly, "%v", err)
		return
	}
	want := j.ReportData
	if want == nil {
		want = j.Nonce
	}
	results, err := v.Verify(j.ctx, verifier.Request{Evidence: j.Evidence, ReportData: want, InitData: j.InitData})
	if errors.Is(err, hygondcu.ErrNoEndorsement) {
		j.open(ValidSignature, "%v", err)
		return
	}
	if err != nil {
		j.refuse("%v", err)
		return
	}
	if want == nil {
		j.note("report_data was not compared: no nonce and no report data given, so the evidence may be a replay")
	}
	if len(results) == 1 {
		j.addClaims(results[0].Claims)
		return
	}
	var list []any
	for _, r := range results {
		list = append(list, map[string]any{"class": r.Class, "claims": r.Claims})
	}
	j.claim("devices", list)
}
