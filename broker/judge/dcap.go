package judge

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/broker/verifier/sgx"
	"github.com/cloister/cloister/broker/verifier/tdx"
	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/tee/quote"
)

func (j *judging) tdx() { j.quoteOf(quote.TDX) }
func (j *judging) sgx() { j.quoteOf(quote.SGX) }

func (j *judging) quoteOf(tee quote.TEE) {
	if q := j.quote(); q != nil && q.TEE != tee {
		j.refuse("TEE type of the quote is %v, expected %v", q.TEE, tee)
	}
}

func (j *judging) dcap() { j.quote() }

// quote judges an Intel quote of either kind: binary, as hex or base64, or in the JSON of guests.
func (j *judging) quote() *quote.Quote {
	raw, log, err := quoteEvidence(j.Evidence)
	if err != nil {
		j.refuse("%v", err)
		return nil
	}
	q, err := quote.Parse(raw)
	if err != nil {
		j.refuse("%v", err)
		return nil
	}
	claims := j.quoteClaims(raw, q)
	if claims == nil {
		return q
	}
	j.addClaims(claims)
	if q.TD == nil {
		j.enclavePolicy(q.Enclave)
		j.bindReportData(q.Enclave.ReportData)
		j.bindCut("config_id (init data)", q.Enclave.ConfigID, j.InitData)
		return q
	}
	j.tdPolicy(q.TD)
	j.bindReportData(q.TD.ReportData)
	j.bindCut("mr_config_id (init data)", q.TD.MRConfigID, j.InitData)
	if j.Log != nil {
		log = j.Log
	}
	if log == nil {
		j.note("rtmr_0 to rtmr_3 were not explained: no event log given")
		return q
	}
	j.ccel(log, q.TD)
	return q
}

// quoteEvidence finds the quote in a file, and the event log beside it.
func quoteEvidence(data []byte) (raw, log []byte, err error) {
	if !isJSON(data) {
		if bytes.HasPrefix(data, []byte{3, 0}) || bytes.HasPrefix(data, []byte{4, 0}) || bytes.HasPrefix(data, []byte{5, 0}) {
			return data, nil, nil
		}
		return text(data), nil, nil
	}
	var e struct {
		Quote    string  `json:"quote"`
		OutBlob  string  `json:"outblob"`
		EventLog *string `json:"cc_eventlog"`
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, nil, fmt.Errorf("reading evidence: %w", err)
	}
	if e.Quote == "" {
		e.Quote = e.OutBlob
	}
	if e.Quote == "" {
		return nil, nil, errors.New("reading evidence: it has no member quote")
	}
	if raw, err = anyBase64(e.Quote); err != nil {
		return nil, nil, fmt.Errorf("reading quote: %w", err)
	}
	if e.EventLog != nil && *e.EventLog != "" {
		if log, err = base64.StdEncoding.DecodeString(*e.EventLog); err != nil {
			return nil, nil, fmt.Errorf("reading cc_eventlog: %w", err)
		}
	}
	return raw, log, nil
}

// intel is what a quote is verified with; the root is given by the caller or Intel's.
func (j *judging) intel(issued ...time.Time) verifier.Options {
	o := verifier.Options{Collateral: j.Collateral, AllowNoCollateral: true}
	root := j.certificate("the root", j.Root)
	for i, data := range j.Certificates {
		certs, err := certificates(data)
		if err != nil {
			j.refuse("certificate %d cannot be read: %v", i+1, err)
			continue
		}
		for _, c := range certs {
			if selfSigned(c) {
				root = c
			} else {
				j.note("certificate %q was not used: expected the root alone, the rest of the chain is in the quote", c.Subject.CommonName)
			}
		}
	}
	if root != nil {
		own, err := verifier.IntelRoot()
		if err != nil || !own.Equal(root) {
			o.Root = root
		}
		j.trusted(root.Subject.CommonName, fingerprint(root), o.Root != nil)
	} else {
		j.claim("trust_root", "built in: Intel SGX Root CA")
	}
	o.Now = j.at(issued...)
	return o
}

// quoteClaims verifies a quote and says what its platform is worth; nil when it was refused or cannot be judged.
func (j *judging) quoteClaims(raw []byte, q *quote.Quote) map[string]any {
	o := j.intel(pckIssued(q)...)
	if len(j.bad) > 0 {
		return nil
	}
	var claims map[string]any
	var err error
	if q.TD != nil {
		claims, _, err = tdx.VerifyTDQuote(j.ctx, raw, o)
	} else {
		claims, err = sgx.VerifyQuote(j.ctx, raw, o)
	}
	if err != nil {
		j.quoteFault(q, err)
		return nil
	}
	j.intelLists(q, o.Now)
	j.platform(claims)
	return claims
}

// platform is what Intel's collateral says, or that there is none.
func (j *judging) platform(claims map[string]any) {
	j.tcb, _ = claims["tcb_status"].(string)
	advisories, _ := claims["advisory_ids"].([]any)
	for _, a := range advisories {
		j.advisories = append(j.advisories, fmt.Sprint(a))
	}
	status := fmt.Sprint(claims["collateral_status"])
	switch {
	case strings.HasPrefix(status, "unavailable: ") && j.Collateral == nil:
		j.open(ValidSignature, "tcb_status is not known: no collateral given, expected TCB info, QE identity and revocation lists; "+
			"the signatures are good up to the root, but whoever owns any genuine platform may have made the quote")
		if claims["collateral_expiration_status"] == "1" {
			j.outdated("a certificate of the quote is not valid at %s", j.Time.UTC().Format(time.RFC3339))
		}
	case strings.HasPrefix(status, "unavailable: "):
		j.open(Incomplete, "collateral_status is %q, expected current collateral of the platform", status)
	case status != "current":
		j.outdated("collateral_status is %q, expected \"current\"", status)
	}
	if j.tcb != "" && j.tcb != string(verifier.UpToDate) {
		j.note("tcb_status is %s, expected UpToDate where the owner's policy demands it; advisories: %s", j.tcb, listed(j.advisories))
	}
}

func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// quoteFault says why a quote is no good.
func (j *judging) quoteFault(q *quote.Quote, err error) {
	var tcb *verifier.TCBError
	if errors.As(err, &tcb) {
		j.tcb, j.advisories = string(tcb.Status), tcb.Advisories
		j.refuse("tcb_status is %s: %v", tcb.Status, err)
		return
	}
	if errors.Is(err, verifier.ErrNotYetValid) {
		j.refuseAs(NotYet, "%v", err)
		return
	}
	if !errors.Is(err, verifier.ErrNoChain) {
		j.refuse("%v", err)
		return
	}
	if err := verifier.CheckBinding(q); err != nil {
		j.refuse("%v", err)
		return
	}
	// Types 1 to 3 are a PPID in a field of 384 bytes, CPUSVN, PCESVN and PCEID.
	const ppidSize = 384 + 16 + 2 + 2
	c := q.Certification
	switch {
	case c.Type >= 1 && c.Type <= 3 && len(c.Data) != ppidSize:
		j.refuse("certification data of type %v has %d bytes, expected %d", c, len(c.Data), ppidSize)
	case c.Type >= 1 && c.Type <= 4:
		j.open(NoChain, "certification data is of type %v, expected 5 (PCK certificate chain): nothing tells who vouches for the platform", c)
	default:
		j.refuse("certification data is of type %v, expected 5 (PCK certificate chain)", c)
	}
}

func (j *judging) enclavePolicy(e *quote.EnclaveReport) {
	if e.Debug() {
		j.reject("attributes of the enclave are %x (DEBUG is set), expected a production enclave", e.Attributes)
	}
}

// tdPolicy is what a TD's attributes say that its signature does not make right.
func (j *judging) tdPolicy(td *quote.TDReport) {
	if td.TDAttributes[0] != 0 {
		j.reject("td_attributes is %x (bits 7:0 are set, DEBUG is %t), expected none of them: the host can read the guest",
			td.TDAttributes, td.Attribute(quote.AttrDebug))
	}
	if td.Attribute(quote.AttrMigratable) {
		j.reject("td_attributes is %x (MIGRATABLE is set), expected it clear: the guest can be moved", td.TDAttributes)
	}
	if len(bytes.Trim(td.MRServiceTD, "\x00")) > 0 {
		j.reject("mr_servicetd is %x, expected zero: a service TD has power over the guest", td.MRServiceTD)
	}
	if !td.Attribute(quote.AttrSEPTVEDisable) {
		j.note("td_attributes is %x (SEPT_VE_DISABLE is clear), expected it set for guests that do not see to it themselves", td.TDAttributes)
	}
}

// ccel holds an event log against the registers of a TD.
func (j *judging) ccel(data []byte, td *quote.TDReport) {
	log, err := eventlog.Parse(data)
	if err != nil {
		j.refuse("event log: %v", err)
		return
	}
	if err := log.CheckCC(eventlog.SHA384, td.RTMR[:]); err != nil {
		j.refuse("event log: %v", err)
		return
	}
	j.content(log)
	j.claim("uefi_event_logs", log.Claims(eventlog.SHA384))
}

// pckIssued is when the certificates of a quote were issued, of those that can be read.
func pckIssued(q *quote.Quote) []time.Time {
	text, ok := q.Certification.PEMChain()
	if !ok {
		return nil
	}
	var out []time.Time
	for block, rest := pem.Decode(text); block != nil && len(out) < maxBlocks; block, rest = pem.Decode(rest) {
		out = append(out, issuedAll(block.Bytes)...)
	}
	return out
}
