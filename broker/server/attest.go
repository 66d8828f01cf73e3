package server

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sort"
	"strings"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/session"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/kbs"
)

const maxDevices = 64

// attest verifies evidence and gives a token (kbs-protocol.md section 2.2). A token is given for genuine evidence, even
// when its appraisal is bad: the token says so, and the resource policy decides what that is worth.
func (s *Server) attest(w http.ResponseWriter, r *http.Request) {
	s.metrics.attestations.Inc()
	body, err := readAll(r)
	if err != nil {
		s.metrics.attestationErrors.Inc()
		s.failBody(w, r, kbs.ErrorAttestation, err)
		return
	}
	entry := audit.Entry{Event: "attest"}
	refuse := func(err error) {
		s.metrics.attestationErrors.Inc()
		entry.Decision, entry.Reason = audit.Deny, err.Error()
		s.noteRefusal(r, entry)
		s.fail(w, r, refusal{http.StatusUnauthorized, kbs.ErrorAttestation, "Attestation error: RCAR handshake Attest failed: " + err.Error()})
	}
	sess, err := s.session(r)
	if err != nil {
		refuse(err)
		return
	}
	entry.Session, entry.TEE = sessionTag(sess.ID), sess.TEE
	tok, id, again, err := sess.Attest(func() (string, string, error) { return s.firstAttest(r, sess, body, &entry) })
	if err != nil {
		s.metrics.attestationFailures.WithLabelValues(sess.TEE).Inc()
		refuse(err)
		return
	}
	if again {
		entry.Decision, entry.Attestation, entry.Reason = audit.Allow, id, "the session is attested already: its token was given again"
		if err := s.note(r, entry); err != nil {
			s.fail(w, r, refusal{http.StatusUnauthorized, kbs.ErrorAttestation, "the audit log cannot be written"})
			return
		}
	}
	s.setCookie(w, sess)
	s.reply(w, r, kbs.TokenResponse{Token: tok})
}

// firstAttest is the attestation proper. Its audit entry and its record are written before the token is handed out.
func (s *Server) firstAttest(r *http.Request, sess *session.Session, body []byte, entry *audit.Entry) (string, string, error) {
	ctx := r.Context()
	evidence, err := s.verify(ctx, sess, body)
	if err != nil {
		return "", "", err
	}
	appraisals, err := s.Appraiser.Appraise(ctx, evidence)
	if err != nil {
		return "", "", err
	}
	id := requestID(r)
	rec := decision.Record{ID: id, Time: s.Now().UTC(), Kind: decision.KindAttestation, Decision: audit.Allow, TEE: sess.TEE}
	submods := map[string]any{}
	var statuses []string
	for i, a := range appraisals {
		submods[a.Name] = a.Submod()
		statuses = append(statuses, a.Name+"="+a.Status)
		raw, err := keptEvidence(a.Annotated)
		if err != nil {
			return "", "", err
		}
		rec.Parts = append(rec.Parts, decision.Part{
			Name: a.Name, TEE: evidence[i].TEE, Status: a.Status, Policy: a.PolicyID, Vector: a.Vector,
			Findings: a.Findings, Evidence: raw,
		})
	}
	summary, from := rec.Summary()
	tok, err := s.Tokens.Issue(id, submods)
	if err != nil {
		return "", "", err
	}
	if err := s.Decisions.Put(ctx, rec); err != nil {
		return "", "", err
	}
	entry.Decision, entry.Attestation, entry.Reason = audit.Allow, id, summary
	entry.Status, entry.Policy = strings.Join(statuses, " "), strings.Join(from, " ")
	if err := s.note(r, *entry); err != nil {
		return "", "", errors.New("the audit log cannot be written")
	}
	s.metrics.attestationSuccesses.WithLabelValues(sess.TEE).Inc()
	if summary != "" {
		s.Log.WarnContext(ctx, "evidence is genuine but not affirmed", "request", id, "tee", sess.TEE, "status", entry.Status, "why", summary)
	} else {
		s.Log.InfoContext(ctx, "attested", "request", id, "tee", sess.TEE, "status", entry.Status)
	}
	return tok, id, nil
}

// keptEvidence is the claims as records keep them. What a guest can make as long as it likes is left out when it is long:
// records must not fill the disk.
func keptEvidence(annotated map[string]any) (json.RawMessage, error) {
	const most = 64 << 10
	kept := map[string]any{}
	for name, v := range annotated {
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encoding claims: %w", err)
		}
		if part, ok := v.(map[string]any); ok && len(raw) > most {
			short := map[string]any{}
			for k, inner := range part {
				if text, ok := inner.(string); ok && len(text) <= 1024 {
					short[k] = inner
				}
			}
			short["cloister.shortened"] = true
			v = short
			if raw, err = json.Marshal(v); err != nil {
				return nil, fmt.Errorf("encoding claims: %w", err)
			}
		}
		if len(raw) > most {
			v = "left out: it is long"
		}
		kept[name] = v
	}
	return json.Marshal(kept)
}

// item is one piece of evidence with what it is bound to.
type item struct {
	tee        string
	evidence   json.RawMessage
	reportData []byte
	challenge  any
	primary    bool
	runtime    map[string]any
}

func (s *Server) verify(ctx context.Context, sess *session.Session, body []byte) ([]appraise.Evidence, error) {
	var att kbs.Attestation
	if err := json.Unmarshal(body, &att); err != nil {
		return nil, fmt.Errorf("reading the attestation: %w", err)
	}
	if subtle.ConstantTimeCompare([]byte(att.RuntimeData.Nonce), []byte(sess.Nonce)) != 1 {
		return nil, fmt.Errorf("runtime-data.nonce is %.64q, want the nonce of this session", att.RuntimeData.Nonce)
	}
	if _, err := att.RuntimeData.TEEPubKey.PublicKey(); err != nil {
		return nil, fmt.Errorf("reading runtime-data.tee-pubkey: %w", err)
	}
	items, err := items(sess, &att)
	if err != nil {
		return nil, err
	}
	digest, claims, err := readInitData(att.InitData)
	if err != nil {
		return nil, err
	}
	var out []appraise.Evidence
	for _, it := range items {
		v, err := s.Verifiers.Get(it.tee)
		if err != nil {
			return nil, err
		}
		req := verifier.Request{Evidence: it.evidence, ReportData: it.reportData, Challenge: it.challenge}
		e := appraise.Evidence{TEE: it.tee, Runtime: it.runtime}
		if it.primary {
			req.InitData, e.InitData = digest, claims
		}
		results, err := v.Verify(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, res := range results {
			e.Class, e.Claims = res.Class, res.Claims
			out = append(out, e)
		}
	}
	return out, nil
}

// items lists the primary evidence and that of devices, each with the report data it must carry.
func items(sess *session.Session, att *kbs.Attestation) ([]item, error) {
	additional := att.TEEEvidence.Additional
	primary, err := kbs.ReportData(att.RuntimeData, &additional, sess.Hash)
	if err != nil {
		return nil, fmt.Errorf("computing report data: %w", err)
	}
	device := map[string]any{"nonce": att.RuntimeData.Nonce, "tee-pubkey": att.RuntimeData.TEEPubKey}
	whole := map[string]any{
		"nonce": att.RuntimeData.Nonce, "tee-pubkey": att.RuntimeData.TEEPubKey, "additional-evidence": additional,
	}
	out := []item{{
		tee: sess.TEE, evidence: att.TEEEvidence.Primary, reportData: primary, challenge: sess.Challenge, primary: true, runtime: whole,
	}}
	if additional == "" {
		return out, nil
	}
	var devices map[string]json.RawMessage
	if err := json.Unmarshal([]byte(additional), &devices); err != nil {
		return nil, fmt.Errorf("reading additional_evidence: %w", err)
	}
	if len(devices) > maxDevices {
		return nil, fmt.Errorf("additional_evidence has %d entries, at most %d are taken", len(devices), maxDevices)
	}
	reportData, err := kbs.ReportData(att.RuntimeData, nil, sess.Hash)
	if err != nil {
		return nil, fmt.Errorf("computing report data: %w", err)
	}
	names := make([]string, 0, len(devices))
	for tee := range devices {
		names = append(names, tee)
	}
	sort.Strings(names)
	for _, tee := range names {
		out = append(out, item{tee: tee, evidence: devices[tee], reportData: reportData, runtime: device})
	}
	return out, nil
}

// readInitData returns the digest and the claims of init data, or nils when there is none.
func readInitData(d *kbs.InitData) ([]byte, any, error) {
	if d == nil {
		return nil, nil, nil
	}
	if d.Format != "toml" {
		return nil, nil, fmt.Errorf("init-data has format %.32q, want \"toml\"", d.Format)
	}
	_, sum, err := initdata.Digest([]byte(d.Body))
	if err != nil {
		return nil, nil, fmt.Errorf("reading init-data: %w", err)
	}
	doc, err := initdata.Parse([]byte(d.Body))
	if err != nil {
		return nil, nil, fmt.Errorf("reading init-data: %w", err)
	}
	return sum, appraise.InitDataClaims(doc.Data), nil
}
