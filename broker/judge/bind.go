package judge

import (
	"crypto/subtle"
)

// bind holds a field against what the caller wants in it: the same, or the same followed by zeros.
func (j *judging) bind(field string, got, want []byte) {
	if want == nil {
		return
	}
	padded := make([]byte, len(got))
	if copy(padded, want) < len(want) || (len(want) == 0 && len(got) > 0) || subtle.ConstantTimeCompare(got, padded) != 1 {
		j.refuse("%s is %x, expected %x as given by the caller", field, got, want)
	}
}

// bindCut is bind for a field that takes the beginning of a longer digest.
func (j *judging) bindCut(field string, got, want []byte) {
	if want == nil {
		return
	}
	if len(want) == 0 {
		j.refuse("%s is %x, expected a digest and got an empty one", field, got)
		return
	}
	j.bind(field, got, want[:min(len(got), len(want))])
}

// bindAny is for fields of a processor's report whose one value is fresh: nonce and report data both mean it.
func (j *judging) bindReportData(got []byte) {
	j.bind("report_data", got, j.ReportData)
	j.bind("report_data (the nonce)", got, j.Nonce)
	if j.ReportData == nil && j.Nonce == nil {
		j.note("report_data was not compared: no nonce and no report data given, so the evidence may be a replay")
	}
}

// noInitData refuses init data where nothing can be bound to it.
func (j *judging) noInitData(tee string) {
	if j.InitData != nil {
		j.refuse("init data is %x, expected none: %s has no field that it could be in", j.InitData, tee)
	}
}
