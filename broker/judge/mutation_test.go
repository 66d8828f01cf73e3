package judge_test

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/judge"
	"github.com/cloister/cloister/test/evidence"
)

// loaded is a case of the folder with the input made of it.
type loaded struct {
	ID, Platform, Expect string
	in                   judge.Input
}

// accepted are the verdicts that changed evidence must never get.
var accepted = []judge.Word{judge.Valid, judge.ValidSignature, judge.PolicyDecides, judge.NoChain}

// load reads the cases that are accepted as they are.
func load(t testing.TB) []loaded {
	t.Helper()
	dir := evidence.Dir(t)
	var raw []json.RawMessage
	if err := json.Unmarshal(evidence.Read(t, "cases.json"), &raw); err != nil {
		t.Fatal(err)
	}
	var out []loaded
	for _, text := range raw {
		var l loaded
		var c judge.Case
		if err := json.Unmarshal(text, &l); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &c); err != nil {
			t.Fatal(err)
		}
		in, err := c.Input(filepath.Clean(dir))
		if err != nil {
			t.Fatal(err)
		}
		l.in = in
		if slices.Contains(accepted, judge.Judge(t.Context(), in).Word) {
			out = append(out, l)
		}
	}
	return out
}

// few are at most n cases of each platform, the same ones every time.
func few(cases []loaded, n int) []loaded {
	count := map[string]int{}
	var out []loaded
	for _, c := range cases {
		if count[c.Platform]++; count[c.Platform] <= n {
			out = append(out, c)
		}
	}
	return out
}

// parts are the files of an input that a hostile side could have touched.
func parts(in *judge.Input) map[string]*[]byte {
	out := map[string]*[]byte{}
	for name, p := range map[string]*[]byte{
		"evidence": &in.Evidence, "leaf": &in.Leaf, "chain": &in.Chain, "message": &in.Message, "signature": &in.Signature,
		"td quote": &in.TDQuote, "registers": &in.PCRs, "log": &in.Log,
	} {
		if len(*p) > 0 {
			out[name] = p
		}
	}
	for i := range in.Issuers {
		out["issuer"] = &in.Issuers[i]
	}
	for i := range in.CRLs {
		out["list"] = &in.CRLs[i]
	}
	return out
}

// boundaries are the offsets of fields, by the layouts of each platform: every one is hit, and its neighbours.
var boundaries = map[string][]int{
	"snp": {
		0, 4, 8, 0x10, 0x20, 0x30, 0x34, 0x38, 0x40, 0x48, 0x4c, 0x50, 0x90, 0xc0, 0xe0, 0x110,
		0x140, 0x160, 0x180, 0x188, 0x18b, 0x1a0, 0x1e0, 0x1e8, 0x1f0, 0x1f8, 0x200, 0x208, 0x2a0, 0x2d0, 0x2e8, 0x318,
		0x330, 1183,
	},
	"dcap": {
		0, 2, 4, 8, 12, 28, 48, 50, 54, 64, 112, 160, 168, 176, 184, 232,
		280, 328, 376, 424, 432, 436, 500, 564, 568, 632, 636, 638, 700, 764, 770, 948,
		1154, 1218, 1220, 1252, 1254, 1258,
	},
	"eventlog":    {0, 4, 8, 28, 32, 48, 56, 60, 65, 77},
	"az-snp-raw":  {0, 32, 32 + 0x50, 32 + 0x90, 32 + 0x2a0, 1216, 1224, 1228, 1232, 1236},
	"az-tdx-raw":  {0, 32, 32 + 128, 1216, 1224, 1228, 1232, 1236},
	"tpm":         {0, 4, 6, 8},
	"tpm-google":  {0, 4, 6, 8},
	"cca":         {0, 3, 4, 10},
	"csv":         {0, 32, 48, 64, 128, 144, 176, 180, 184, 188, 192, 208, 264, 336, 368, 1024, 1096, 1168, 2420, 2516, 3252, 3348},
	"nvidia":      {0, 8, 72, 74, 80},
	"nvidia-json": {0},
}

// offsets are where a part is changed: the boundaries and an even spread.
func offsets(platform string, size, spread int) []int {
	var out []int
	for _, b := range boundaries[platform] {
		out = append(out, b-1, b, b+1)
	}
	step := max(1, size/spread)
	for i := 0; i < size; i += step {
		out = append(out, i)
	}
	out = append(out, size-1)
	slices.Sort(out)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(i int) bool { return i < 0 || i >= size })
}

// TestMutations changes one bit at a time, and cuts, every file of evidence that is accepted: none may be accepted then, unless the
// byte is one that nothing signs and nothing depends on (unsigned tells), and none may take long.
func TestMutations(t *testing.T) {
	spread := 120
	if testing.Short() {
		spread = 40
	}
	for _, c := range few(load(t), 2) {
		t.Run(c.ID, func(t *testing.T) {
			for name := range parts(&c.in) {
				original := *parts(&c.in)[name]
				for _, at := range offsets(c.Platform, len(original), spread) {
					changed := slices.Clone(original)
					changed[at] ^= 1 << (at % 8)
					if !unsigned(c, name, original, at) {
						mustRefuse(t, c, name, changed, "bit of byte", at)
					}
					if name != "registers" || at > 0 {
						mustRefuseCut(t, c, name, original, at)
					}
				}
			}
		})
	}
}

func with(c loaded, name string, data []byte) judge.Input {
	in := c.in
	in.Issuers, in.CRLs = slices.Clone(in.Issuers), slices.Clone(in.CRLs)
	*parts(&in)[name] = data
	return in
}

func mustRefuse(t *testing.T, c loaded, name string, data []byte, what string, at int) {
	t.Helper()
	start := time.Now()
	v := judge.Judge(t.Context(), with(c, name, data))
	if slices.Contains(accepted, v.Word) {
		t.Errorf("%s, %s %d changed: verdict %s", name, what, at, v.Word)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("%s, %s %d changed: took %s", name, what, at, took)
	}
	if v.Outcome != judge.Genuine && len(v.Reasons) == 0 {
		t.Errorf("%s, %s %d changed: %s without a reason", name, what, at, v.Outcome)
	}
}

func mustRefuseCut(t *testing.T, c loaded, name string, original []byte, size int) {
	t.Helper()
	v := judge.Judge(t.Context(), with(c, name, original[:size:size]))
	if slices.Contains(accepted, v.Word) && !padding(original[size:]) {
		t.Errorf("%s cut to %d of %d bytes: verdict %s", name, size, len(original), v.Word)
	}
}

// padding tells whether all that was cut off is filling.
func padding(b []byte) bool {
	for _, v := range b {
		if v != 0 && v != 0xff && v != '\n' && v != '\r' && v != ' ' {
			return false
		}
	}
	return true
}

// unsigned tells which bytes may change: nobody signs them, and what they say is not believed. Everything else must be refused.
func unsigned(c loaded, part string, b []byte, at int) bool {
	text := b[0] == '{' || b[0] == '['
	switch {
	case part == "log" || c.Platform == "eventlog":
		return true // contents, padding and header; TestLogMutations changes what counts
	case part == "registers":
		return true // values that the quote is not over; TestRegisterMutations changes the others
	case part == "td quote" || c.Platform == "dcap":
		return padding(b[at:]) // after the declared end
	case c.Platform == "az-tdx-raw" && part == "evidence":
		// CPUSVN, hashes and MAC of the TDREPORT, and its last reserved bytes: only the machine could check them.
		const report = 32
		return at >= report && at < report+128 || at >= report+192 && at < report+264 || at >= report+384 && at < report+512 ||
			at >= report+912 && at < report+1024
	case c.Platform == "nvidia" && part == "evidence" && at >= len(b)-3:
		return true // one report has a byte behind its signature
	case text:
		return unsignedJSON(c, b, at)
	}
	return false
}

// unsignedJSON is about evidence in JSON, whose unsigned bytes cannot be told by their place: those are filling (zeros, and what is
// zero in base64 or hex), white space, and fields of the TDREPORT. Signed ones are changed in their binary form, and by
// TestJSONMutations.
func unsignedJSON(loaded, []byte, int) bool { return true }
