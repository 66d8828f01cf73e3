// Package tpm verifies TPM 2.0 evidence: a quote over all registers, the event log behind them, and who vouches for the
// key that signed.
//
// Verify is a function of its arguments alone: the broker calls it for a session, tools call it for saved evidence. It
// checks, in this order: the signature; that the quote is over all 24 SHA-256 registers and over the values given; that
// it carries the expected report data; that PCR 8 is the digest of the init data, extended exactly once; that the event
// log replays to the registers it speaks of; and, apart from genuineness of the quote itself, whether a TPM maker's
// certificate endorses the key (claim ak_endorsement). Claims are those of attestation-service.md section 4.12.
package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/tee/tpm"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/kbs"
)

const (
	pcrCount     = 24
	maxStructure = 8 << 10
	maxLog       = 1 << 20
	maxEvents    = 4096

	initDataPCR = 8
)

// Values of the claim ak_endorsement.
const (
	EndorsedByEK = "ek-certificate"
	EndorsedNot  = "none"
)

// Options is what the evidence is held against.
type Options struct {
	// ExpectedReportData must be what the quote was made for. Nil leaves the binding unchecked, which is only for looking
	// at saved evidence: the quote may then be a replay.
	ExpectedReportData []byte
	// InitDataDigest must have been extended into PCR 8. Nil leaves PCR 8 to the policy.
	InitDataDigest []byte
	// Credential is the challenge that was given to the TPM, nil when there was none.
	Credential *Credential
	// EKRoots are the certificates that TPM makers endorse with; nil endorses nothing.
	EKRoots *x509.CertPool
	// Now is the time certificates are checked at.
	Now time.Time
}

// Verify checks evidence and returns its claims.
func Verify(evidence []byte, o Options) (map[string]any, error) {
	var e kbs.TPMEvidence
	if err := json.Unmarshal(evidence, &e); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	q, err := parse(e)
	if err != nil {
		return nil, err
	}
	if err := q.checkSignature(); err != nil {
		return nil, err
	}
	if err := q.checkPCRs(); err != nil {
		return nil, err
	}
	if o.ExpectedReportData != nil {
		if err := checkReportData(q.attest.ExtraData, o.ExpectedReportData); err != nil {
			return nil, err
		}
	}
	if o.InitDataDigest != nil {
		if err := checkInitData(q.pcrs[initDataPCR], o.InitDataDigest); err != nil {
			return nil, err
		}
	}
	claims := map[string]any{
		"report_data": hex.EncodeToString(q.attest.ExtraData),
		"init_data":   hex.EncodeToString(q.pcrs[initDataPCR]),
		"ak_public":   base64.StdEncoding.EncodeToString(q.akDER),
	}
	for i, v := range q.pcrs {
		claims[fmt.Sprintf("pcr%02d", i)] = hex.EncodeToString(v)
	}
	if e.EventLog != "" {
		events, err := checkEventLog(e.EventLog, q.pcrs)
		if err != nil {
			return nil, err
		}
		claims["uefi_event_logs"] = events
	}
	endorsed, why, err := endorsement(q.ak, e.AKCredential, o)
	if err != nil {
		return nil, err
	}
	claims["ak_endorsement"] = endorsed
	if why != "" {
		claims["ak_endorsement_detail"] = why
	}
	return claims, nil
}

// quote is evidence after parsing.
type quote struct {
	message   []byte
	attest    *tpm.Attest
	signature *tpm.Signature
	ak        crypto.PublicKey
	akDER     []byte
	pcrs      [pcrCount][]byte
}

func parse(e kbs.TPMEvidence) (*quote, error) {
	var q quote
	var err error
	if q.message, err = decode("tpm_quote.message", e.TPMQuote.Message); err != nil {
		return nil, err
	}
	if q.attest, err = tpm.ParseAttest(q.message); err != nil {
		return nil, fmt.Errorf("reading tpm_quote.message: %w", err)
	}
	sig, err := decode("tpm_quote.signature", e.TPMQuote.Signature)
	if err != nil {
		return nil, err
	}
	if q.signature, err = tpm.ParseSignature(sig); err != nil {
		return nil, fmt.Errorf("reading tpm_quote.signature: %w", err)
	}
	if q.akDER, err = decode("ak_public", e.AKPublic); err != nil {
		return nil, err
	}
	if q.ak, err = x509.ParsePKIXPublicKey(q.akDER); err != nil {
		return nil, fmt.Errorf("reading ak_public: %w", err)
	}
	switch q.ak.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
	default:
		return nil, fmt.Errorf("ak_public is a key of type %T, want RSA or EC", q.ak)
	}
	if len(e.TPMQuote.PCRs) != pcrCount {
		return nil, fmt.Errorf("tpm_quote.pcrs has %d values, want %d", len(e.TPMQuote.PCRs), pcrCount)
	}
	for i, text := range e.TPMQuote.PCRs {
		if len(text) != 64 {
			return nil, fmt.Errorf("tpm_quote.pcrs[%d] has %d characters, want 64 hex digits", i, len(text))
		}
		if q.pcrs[i], err = hex.DecodeString(text); err != nil {
			return nil, fmt.Errorf("reading tpm_quote.pcrs[%d]: %w", i, err)
		}
	}
	return &q, nil
}

func decode(name, text string) ([]byte, error) {
	if text == "" {
		return nil, fmt.Errorf("%s is missing", name)
	}
	if len(text) > maxStructure {
		return nil, fmt.Errorf("%s has %d characters, at most %d are read", name, len(text), maxStructure)
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}

func (q *quote) checkSignature() error {
	if err := tpm.VerifySignature(q.ak, q.message, q.signature); err != nil {
		return fmt.Errorf("quote signature: %w", err)
	}
	return nil
}

// checkPCRs makes sure that the values given are the quoted ones, and all of them: a quote over fewer registers would
// leave the others to the guest's word.
func (q *quote) checkPCRs() error {
	if len(q.attest.Selections) != 1 || q.attest.Selections[0].Bank != tpm.AlgSHA256 {
		return fmt.Errorf("quote selects %s, want the sha256 bank alone", selected(q.attest.Selections))
	}
	values := map[int][]byte{}
	all := make([]int, pcrCount)
	for i, v := range q.pcrs {
		all[i], values[i] = i, v
	}
	if got := q.attest.Selections[0].PCRs; !slices.Equal(got, all) {
		return fmt.Errorf("quote selects registers %v, want all of 0 to %d", got, pcrCount-1)
	}
	h, ok := q.signature.Hash.Hash()
	if !ok {
		return fmt.Errorf("quote is signed with hash %s, which is unknown", q.signature.Hash)
	}
	want, err := tpm.PCRDigest(q.attest.Selections, tpm.PCRValues{tpm.AlgSHA256: values}, h)
	if err != nil {
		return fmt.Errorf("hashing the register values: %w", err)
	}
	if !bytes.Equal(q.attest.PCRDigest, want) {
		return fmt.Errorf("the register values hash to %x, the quote has %x", want, q.attest.PCRDigest)
	}
	return nil
}

func selected(s []tpm.PCRSelection) string {
	if len(s) == 0 {
		return "no registers"
	}
	text := ""
	for i, sel := range s {
		if i > 0 {
			text += " and "
		}
		text += fmt.Sprintf("bank %s", sel.Bank)
	}
	return text
}

// checkReportData compares the qualifying data with the expected report data, cut or zero-padded to the same length.
// Clients in use sign 32, 48 or 64 bytes; shorter values would bind too little.
func checkReportData(extra, expected []byte) error {
	if n := len(extra); n != 32 && n != 48 && n != 64 {
		return fmt.Errorf("quote has %d bytes of qualifying data, want 32, 48 or 64", n)
	}
	want := make([]byte, len(extra))
	copy(want, expected)
	if subtle.ConstantTimeCompare(extra, want) != 1 {
		return fmt.Errorf("report_data = %x, want %x: the quote was made for another session, key or set of devices", extra, want)
	}
	return nil
}

func checkInitData(pcr, digest []byte) error {
	want, err := initdata.PCR8(digest)
	if err != nil {
		return fmt.Errorf("init-data cannot be held against a TPM: %w", err)
	}
	if !bytes.Equal(pcr, want) {
		return fmt.Errorf("pcr08 = %x, want %x: the init-data sent is not what the guest measured", pcr, want)
	}
	return nil
}

// replayed tells of which registers the log must give the quoted values. PCR 8 is extended by the guest after the log
// ends, the registers above 9 by whoever boots.
func replayed(register uint32) bool { return register <= 9 && register != initDataPCR }

// checkEventLog replays the log and returns a summary of it: of the registers that were checked only, since anybody can
// write events for the others into a log.
func checkEventLog(text string, pcrs [pcrCount][]byte) ([]any, error) {
	if len(text) > base64.StdEncoding.EncodedLen(maxLog) {
		return nil, fmt.Errorf("event_log has %d characters, more than a log of %d bytes", len(text), maxLog)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("reading event_log: %w", err)
	}
	log, err := eventlog.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("reading event_log: %w", err)
	}
	if len(log.Events) > maxEvents {
		return nil, fmt.Errorf("event_log has %d events, at most %d are read", len(log.Events), maxEvents)
	}
	registers, err := log.Replay(eventlog.SHA256)
	if err != nil {
		return nil, fmt.Errorf("replaying event_log: %w", err)
	}
	var faults []error
	for i := range pcrs {
		v, spoken := registers[uint32(i)]
		if !spoken || !replayed(uint32(i)) {
			continue
		}
		if !bytes.Equal(v, pcrs[i]) {
			faults = append(faults, fmt.Errorf("event_log gives pcr%02d = %x, the quote has %x", i, v, pcrs[i]))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return summary(log), nil
}

// summary lists the events without their data, which would make tokens as large as logs.
func summary(log *eventlog.Log) []any {
	out := make([]any, 0, len(log.Events))
	for i := range log.Events {
		e := &log.Events[i]
		if e.Type == eventlog.NoAction || !replayed(e.Index) {
			continue
		}
		entry := map[string]any{
			"index":                int64(e.Index),
			"type_name":            e.Type.String(),
			"digest_matches_event": e.DigestsMatchData(),
		}
		if sum := e.Digest(eventlog.SHA256); sum != nil {
			entry["digests"] = []any{map[string]any{"alg": "SHA-256", "digest": hex.EncodeToString(sum)}}
		}
		out = append(out, entry)
	}
	return out
}
