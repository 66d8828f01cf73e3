package judge_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/judge"
)

// FuzzJudge gives every kind of evidence any bytes, with what a caller gives beside it: it must have a verdict and a reason, and
// evidence that differs from what was recorded must not be genuine unless it is a recording.
func FuzzJudge(f *testing.F) {
	cases := few(load(f), 1)
	tees := judge.TEEs()
	beside := map[string]judge.Input{}
	for _, c := range cases {
		in := c.in
		in.Evidence, in.Collateral, in.Log = nil, nil, nil
		beside[c.Platform] = in
		f.Add(slices.Index(tees, c.Platform), c.in.Evidence, c.in.Log)
	}
	f.Add(0, []byte("{}"), []byte{})
	f.Add(1, []byte{}, []byte(nil))
	f.Fuzz(func(t *testing.T, tee int, data, log []byte) {
		if tee < 0 || tee >= len(tees) {
			return
		}
		in := beside[tees[tee]]
		in.TEE, in.Evidence = tees[tee], data
		if len(log) > 0 {
			in.Log = log
		}
		if in.Time.IsZero() {
			in.Time = time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
		}
		v := judge.Judge(context.Background(), in)
		if v.Outcome != judge.Genuine && len(v.Reasons) == 0 {
			t.Fatalf("%s without a reason", v.Outcome)
		}
		if len(data) < 64 && v.Outcome == judge.Genuine {
			t.Fatalf("%d bytes of %s are genuine", len(data), tees[tee])
		}
	})
}

// FuzzSupport gives any bytes for the files beside genuine evidence.
func FuzzSupport(f *testing.F) {
	cases := few(load(f), 1)
	for i, c := range cases {
		for _, b := range [][]byte{c.in.Leaf, c.in.Root, c.in.Key, c.in.PCRs, c.in.Signature, c.in.Chain} {
			f.Add(i, b)
		}
	}
	f.Fuzz(func(t *testing.T, i int, data []byte) {
		if i < 0 || i >= len(cases) || len(data) == 0 {
			return
		}
		in := cases[i].in
		in.Certificates = [][]byte{data}
		_ = judge.Judge(context.Background(), in)
		in = cases[i].in
		in.PCRs, in.Signature, in.Chain, in.Root, in.CRLs = data, data, data, data, [][]byte{data}
		if v := judge.Judge(context.Background(), in); v.Outcome != judge.Genuine && len(v.Reasons) == 0 {
			t.Fatalf("%s without a reason", v.Outcome)
		}
	})
}
