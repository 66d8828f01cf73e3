package judge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	maxCasesFile = 64 << 20
	maxCases     = 100_000
)

// CaseResult is what became of a case.
type CaseResult struct {
	ID        string  `json:"id"`
	Platform  string  `json:"platform"`
	Expected  string  `json:"expected"`
	Got       Word    `json:"got"`
	Match     bool    `json:"match"`
	TCBStatus string  `json:"tcb_status"`
	Verdict   Outcome `json:"verdict"`
	Reason    string  `json:"reason"`
}

// Line is the result in one line of text, its parts apart by tabs.
func (r CaseResult) Line() string {
	tcb, reason := r.TCBStatus, r.Reason
	if tcb == "" {
		tcb = "-"
	}
	if reason == "" {
		reason = "-"
	}
	mark := "ok"
	switch {
	case r.Broken():
		mark = "ERROR"
	case !r.Match:
		mark = "DIFFERS"
	}
	return strings.Join([]string{mark, r.ID, r.Expected, string(r.Got), tcb, reason}, "\t")
}

// Broken tells whether the case itself is at fault: it cannot be read, a file of it is not there, or what it expects is no verdict.
// A broken case neither matches nor differs.
func (r CaseResult) Broken() bool { return !r.Match && (r.Got == unreadable || !known(r.Expected)) }

// unreadable is the word for a case whose files cannot be read.
const unreadable Word = "unreadable"

// texts is a member that is a text or a list of texts.
type texts []string

// UnmarshalJSON reads either.
func (l *texts) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '[' {
		return json.Unmarshal(data, (*[]string)(l))
	}
	var one *string
	if err := json.Unmarshal(data, &one); err != nil {
		return err
	}
	if one != nil {
		*l = texts{*one}
	}
	return nil
}

// Case is a case of a folder: names of files, relative to it, and values to compare with. What a case expects, and why, is not
// here: a verdict never follows from it.
type Case struct {
	Platform string `json:"platform"`
	Now      string `json:"now"`

	Report, Evidence, Log, Token, HKD, HCL, Msg string
	Quote                                       string
	TDQuote                                     string `json:"td_quote"`
	Sig                                         string
	Leaf, Ask, Ark                              string
	TrustRoot                                   string `json:"trust_root"`
	CRL                                         texts
	CA                                          texts `json:"ca"`
	CACRL                                       texts `json:"ca_crl"`
	Signer, Chain                               string
	AK                                          string `json:"ak"`
	AKTPMT                                      string `json:"ak_tpmt"`
	PCRs                                        string `json:"pcrs"`
	EventLog                                    string `json:"eventlog"`
	CPAK                                        string `json:"cpak"`
	PrivateKey                                  string `json:"private_key"`
	HSKCEK                                      string `json:"hsk_cek"`
	HRK                                         string `json:"hrk"`
	Collateral                                  string

	Nonce      texts
	ReportData *string `json:"report_data"`
	InitData   *string `json:"init_data"`
	PCRDigest  *string `json:"pcr_digest"`
	SigAlg     *string `json:"sig_alg"`
	Selection  []caseSelection
	Events     *int
	Replay     map[string]map[string]string
	Arch       string
	Magic      *string
	Flags      *uint32
}

// caseSelection is ["sha256",[0,1,…]].
type caseSelection Selection

// UnmarshalJSON reads the pair.
func (s *caseSelection) UnmarshalJSON(data []byte) error {
	var pair [2]json.RawMessage
	if err := json.Unmarshal(data, &pair); err != nil {
		return err
	}
	return errors.Join(json.Unmarshal(pair[0], &s.Bank), json.Unmarshal(pair[1], &s.PCRs))
}

// expectation is what a case expects.
type expectation struct {
	ID, Expect string
	TCBStatus  *string `json:"tcb_status"`
	Advisories []string
}

// Cases judges every case of a file in the form of cases.json, in its order. An error means that the file itself cannot be read, or
// that ctx ended.
func Cases(ctx context.Context, file string) ([]CaseResult, error) {
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		file = filepath.Join(file, "cases.json")
	}
	text, err := readBounded(file, maxCasesFile)
	if err != nil {
		return nil, err
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return nil, fmt.Errorf("reading cases %s: %w", file, err)
	}
	if len(raw) == 0 || len(raw) > maxCases {
		return nil, fmt.Errorf("reading cases %s: it has %d, expected 1 to %d", file, len(raw), maxCases)
	}
	dir := filepath.Dir(file)
	out := make([]CaseResult, 0, len(raw))
	for i, text := range raw {
		out = append(out, judgeCase(ctx, dir, i, text))
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("judging cases %s: %w", file, err)
		}
	}
	return out, nil
}

// judgeCase judges the case at a place in the file. What cannot be read of it, or is not known, is a fault of this case alone.
func judgeCase(ctx context.Context, dir string, place int, text []byte) CaseResult {
	r := CaseResult{ID: fmt.Sprintf("#%d", place), Got: unreadable, Verdict: Unjudged}
	var want expectation
	var c Case
	err := json.Unmarshal(text, &want)
	if want.ID != "" {
		r.ID = want.ID
	}
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	r.Expected, r.Platform = want.Expect, c.Platform
	if err == nil && want.Expect == "" {
		err = errors.New("it has no expect")
	}
	if err != nil {
		r.Reason = "reading the case: " + err.Error()
		return r
	}
	in, err := c.Input(dir)
	if err != nil {
		r.Reason = err.Error()
		return r
	}
	return want.compare(r, Judge(ctx, in))
}

// compare says whether a verdict is what was expected: the word, and the TCB status and advisories where both have them.
func (e expectation) compare(r CaseResult, v Verdict) CaseResult {
	r.Got, r.TCBStatus, r.Verdict = v.Word, v.TCBStatus, v.Outcome
	r.Match = v.Word.Meets(e.Expect)
	reasons := v.Reasons
	if !known(e.Expect) {
		reasons = append([]string{fmt.Sprintf("expected verdict %.40q is not known", e.Expect)}, reasons...)
	}
	if e.TCBStatus != nil && *e.TCBStatus != v.TCBStatus && (v.TCBStatus != "" || v.Word != Invalid && v.Word != NotYet) {
		r.Match = false
		reasons = append([]string{fmt.Sprintf("tcb_status is %q, the case expects %q", v.TCBStatus, *e.TCBStatus)}, reasons...)
	}
	if missing := difference(e.Advisories, v.Advisories); v.TCBStatus != "" && v.Word != Invalid && e.Advisories != nil && missing != "" {
		r.Match = false
		reasons = append([]string{fmt.Sprintf("advisories are %s, the case expects %s", listed(v.Advisories), listed(e.Advisories))}, reasons...)
	}
	r.Reason = strings.NewReplacer("\n", " ", "\t", " ").Replace(strings.Join(reasons, "; "))
	return r
}

// difference names an element that only one of two sets has.
func difference(a, b []string) string {
	count := map[string]int{}
	for _, x := range a {
		count[x] |= 1
	}
	for _, x := range b {
		count[x] |= 2
	}
	for x, in := range count {
		if in != 3 {
			return x
		}
	}
	return ""
}

// reader reads the files of a case and remembers the first fault.
type reader struct {
	dir string
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// file reads a file of the folder, nil when the case does not name one.
func (r *reader) file(name string) []byte {
	if name == "" {
		return nil
	}
	if !filepath.IsLocal(name) {
		r.fail(fmt.Errorf("file name is %.80q, expected one inside of the folder", name))
		return nil
	}
	data, err := readBounded(filepath.Join(r.dir, name), maxEvidence)
	if err != nil && !errors.Is(err, errTooLarge) { // the verdict says so
		r.fail(err)
	}
	if data == nil {
		data = []byte{}
	}
	return data
}

func (r *reader) files(names texts) [][]byte {
	var out [][]byte
	for _, n := range names {
		out = append(out, r.file(n))
	}
	return out
}

// value decodes a value, nil when the case has none and empty when it is empty.
func (r *reader) value(what string, text *string) []byte {
	if text == nil {
		return nil
	}
	b, err := ParseBytes(*text)
	if err != nil {
		r.fail(fmt.Errorf("%s of the case: %w", what, err))
	}
	if b == nil {
		b = []byte{}
	}
	return b
}

// Input reads the files of a case.
func (c *Case) Input(dir string) (Input, error) {
	r := &reader{dir: dir}
	in := Input{TEE: Name(c.Platform), MaxVMPL: DefaultMaxVMPL, Events: c.Events, Replay: c.Replay,
		Arch: c.Arch, Magic: c.Magic, Flags: c.Flags}
	if c.Now != "" {
		at, err := ParseTime(c.Now)
		if err != nil {
			r.fail(fmt.Errorf("now of the case: %w", err))
		}
		in.Time = at
	}
	if !slices.Contains(TEEs(), in.TEE) {
		r.fail(fmt.Errorf("platform is %.32q, expected one of %s", c.Platform, strings.Join(TEEs(), ", ")))
	}
	c.evidence(r, &in)
	c.certificates(r, &in)
	switch {
	case len(c.Nonce) > 1 || in.TEE == "nvidia-json":
		for i := range c.Nonce {
			in.Nonces = append(in.Nonces, r.value("nonce", &c.Nonce[i]))
		}
	case len(c.Nonce) == 1:
		in.Nonce = r.value("nonce", &c.Nonce[0])
	}
	in.ReportData, in.InitData = r.value("report_data", c.ReportData), r.value("init_data", c.InitData)
	in.PCRDigest, in.SigAlg = r.value("pcr_digest", c.PCRDigest), r.value("sig_alg", c.SigAlg)
	for _, s := range c.Selection {
		in.Selection = append(in.Selection, Selection(s))
	}
	if c.Collateral != "" && r.err == nil {
		c.collateral(r, &in)
	}
	return in, r.err
}

// evidence reads the main file and what belongs to it.
func (c *Case) evidence(r *reader, in *Input) {
	for _, name := range []string{c.Evidence, c.Report, c.Log, c.Token, c.HKD, c.HCL, c.Msg} {
		if name != "" {
			in.Evidence = r.file(name)
			break
		}
	}
	in.Signature, in.PCRs, in.Log, in.TDQuote = r.file(c.Sig), r.file(c.PCRs), r.file(c.EventLog), r.file(c.TDQuote)
	switch {
	case in.Evidence == nil: // of Intel
		in.Evidence = r.file(c.Quote)
	case c.Log != "":
		in.TDQuote = r.file(c.Quote)
	default: // of the TPM, beside an HCL report
		in.Message = r.file(c.Quote)
	}
	if in.Evidence == nil {
		r.fail(errors.New("the case names no evidence"))
	}
	if c.Log == "" && c.HCL == "" && c.Quote == "" && in.Message == nil && in.TDQuote != nil {
		r.fail(errors.New("the case has a td_quote without an HCL report"))
	}
}

func (c *Case) certificates(r *reader, in *Input) {
	in.Leaf, in.Root, in.Chain = r.file(c.Leaf), r.file(c.Ark), r.file(c.Chain)
	for _, root := range []string{c.TrustRoot, c.HRK} {
		if root != "" {
			in.Root = r.file(root)
		}
	}
	if c.HSKCEK != "" {
		in.Chain = r.file(c.HSKCEK)
	}
	for _, name := range []string{c.Ask, c.Signer} {
		if name != "" {
			in.Issuers = append(in.Issuers, r.file(name))
		}
	}
	in.Certificates = r.files(c.CA)
	in.CRLs, in.IssuerCRLs = r.files(c.CRL), r.files(c.CACRL)
	for _, key := range []string{c.AK, c.AKTPMT, c.CPAK, c.PrivateKey} {
		if key != "" {
			in.Key = r.file(key)
		}
	}
}

func (c *Case) collateral(r *reader, in *Input) {
	if !filepath.IsLocal(c.Collateral) {
		r.fail(fmt.Errorf("collateral is %.80q, expected a folder inside of that of the cases", c.Collateral))
		return
	}
	source, err := OpenCollateral(filepath.Join(r.dir, c.Collateral))
	if err != nil {
		r.fail(err)
		return
	}
	in.Collateral = source
	if in.Time.IsZero() {
		in.Time = source.Time
	}
}

var errTooLarge = errors.New("the file is too large")

// readBounded reads a regular file of at most limit bytes; of a larger one it returns a byte more, with errTooLarge.
func readBounded(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: it is no regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return data, fmt.Errorf("reading %s: %w: more than %d bytes", name, errTooLarge, limit)
	}
	return data, nil
}
