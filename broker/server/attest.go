package server

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/session"
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
	release, ok := s.Limiter.slot(r)
	if !ok {
		s.metrics.attestationErrors.Inc()
		w.Header().Set("Retry-After", "5")
		http.Error(w, "the broker is busy with other attestations", http.StatusServiceUnavailable)
		return
	}
	defer release()
	entry := audit.Entry{Event: "attest"}
	refuse := func(err error) {
		s.metrics.attestationErrors.Inc()
		entry.Decision, entry.Reason = audit.Deny, err.Error()
		s.noteRefusal(r, entry)
		status := statusOf(w, err)
		s.fail(w, r, refusal{status, kbs.ErrorAttestation, "Attestation error: RCAR handshake Attest failed: " + err.Error()})
	}
	sess, err := s.session(r)
	if err != nil {
		refuse(err)
		return
	}
	entry.Session, entry.TEE = sessionTag(sess.ID), sess.TEE
	tok, id, again, err := sess.Attest(r.Context(), func(ctx context.Context) (string, string, error) {
		return s.firstAttest(r.WithContext(ctx), sess, body, &entry)
	})
	if err != nil {
		s.metrics.attestationFailures.WithLabelValues(label(sess.TEE)).Inc()
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
	items, err := items(sess, body)
	if err != nil {
		return "", "", err
	}
	id := requestID(r)
	verdict, err := s.Attestation.Evaluate(ctx, id, appraise.DefaultPolicy, items)
	if err != nil {
		return "", "", err
	}
	rec := verdict.Record
	var statuses []string
	for _, p := range rec.Parts {
		statuses = append(statuses, p.Name+"="+p.Status)
	}
	summary, from := rec.Summary()
	entry.Decision, entry.Attestation, entry.Reason = audit.Allow, id, summary
	entry.Status, entry.Policy = strings.Join(statuses, " "), strings.Join(from, " ")
	// Both wait for the disk, so they wait together.
	var kept errgroup.Group
	kept.Go(func() error { return s.Decisions.Put(ctx, rec) })
	if err := s.note(r, *entry); err != nil {
		_ = kept.Wait() // nothing comes of it
		return "", "", errors.New("the audit log cannot be written")
	}
	if err := kept.Wait(); err != nil {
		return "", "", err
	}
	s.metrics.attestationSuccesses.WithLabelValues(label(sess.TEE)).Inc()
	if summary != "" {
		s.Log.WarnContext(ctx, "evidence is genuine but not affirmed", "request", id, "tee", sess.TEE, "status", entry.Status, "why", summary)
	} else {
		s.Log.InfoContext(ctx, "attested", "request", id, "tee", sess.TEE, "status", entry.Status)
	}
	return verdict.Token, id, nil
}

// items reads an attestation and lists its primary evidence and that of devices, each with the report data it must carry.
func items(sess *session.Session, body []byte) ([]attestation.Item, error) {
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
	digest, claims, err := readInitData(att.InitData)
	if err != nil {
		return nil, err
	}
	text := ""
	if att.InitData != nil {
		text = att.InitData.Body
	}
	additional := att.TEEEvidence.Additional
	primary, err := kbs.ReportData(att.RuntimeData, &additional, sess.Hash)
	if err != nil {
		return nil, fmt.Errorf("computing report data: %w", err)
	}
	out := []attestation.Item{{
		TEE: sess.TEE, Evidence: att.TEEEvidence.Primary, ReportData: primary, Challenge: sess.Challenge, InitData: digest, InitClaims: claims,
		InitTOML: text,
		Runtime: map[string]any{
			"nonce": att.RuntimeData.Nonce, "tee-pubkey": att.RuntimeData.TEEPubKey, "additional-evidence": additional,
		},
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
	reportData, err := kbs.ReportData(att.RuntimeData, nil, kbs.DefaultHash)
	if err != nil {
		return nil, fmt.Errorf("computing report data: %w", err)
	}
	for _, tee := range slices.Sorted(maps.Keys(devices)) {
		out = append(out, attestation.Item{
			TEE: tee, Evidence: devices[tee], ReportData: reportData,
			Runtime: map[string]any{"nonce": att.RuntimeData.Nonce, "tee-pubkey": att.RuntimeData.TEEPubKey},
		})
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
