package server

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/wire/kbs"
)

const pluginResource = "resource"

// teeKeyPaths is where tokens carry the guest's key, in the order they are looked at: those of Intel's service, of an older
// upstream, and of this broker (kbs-protocol.md section 6).
var teeKeyPaths = []string{
	"/tdx/attester_runtime_data/tee-pubkey",
	"/tdx/attester_user_data/tee-pubkey",
	"/customized_claims/runtime_data/tee-pubkey",
	"/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey",
	"/tee-pubkey",
}

// getResource releases a secret to an attested guest, encrypted to the key in its token.
func (s *Server) getResource(w http.ResponseWriter, r *http.Request) {
	entry := audit.Entry{Event: "resource-read"}
	rec := decision.Record{ID: requestID(r), Time: s.Now().UTC(), Kind: decision.KindResource, Decision: audit.Deny}
	jwe, refused := s.release(r, &entry, &rec)
	if refused != nil {
		entry.Decision, entry.Reason = audit.Deny, refused.detail
		s.noteRefusal(r, entry)
		rec.Reason = refused.detail
		s.keep(r, rec)
		s.Log.WarnContext(r.Context(), "resource refused", "request", rec.ID, "resource", entry.Subject, "why", refused.detail)
		s.fail(w, r, *refused)
		return
	}
	entry.Decision = audit.Allow
	if err := s.note(r, entry); err != nil {
		s.metrics.auditErrors.Inc()
		s.fail(w, r, refusal{http.StatusUnauthorized, kbs.ErrorPluginInternal, "the audit log cannot be written, so nothing is released"})
		return
	}
	s.metrics.reads.Inc()
	s.Log.InfoContext(r.Context(), "resource released", "request", rec.ID, "resource", entry.Subject, "attestation", entry.Attestation)
	s.send(w, r, "application/json", jwe)
}

// keep remembers a refusal, so that it can be explained. The history is bounded, and without an attestation there is
// nothing to explain that the audit log does not say: whoever reaches the port could push out the records of real guests.
func (s *Server) keep(r *http.Request, rec decision.Record) {
	if rec.AttestationID == "" {
		return
	}
	if err := s.Decisions.Put(r.Context(), rec); err != nil {
		s.Log.ErrorContext(r.Context(), "keeping a decision", "request", rec.ID, "error", err)
	}
}

// release decides about a resource and prepares the answer. Nothing tells an existing resource from a missing one before
// the policy has said yes.
func (s *Server) release(r *http.Request, entry *audit.Entry, rec *decision.Record) ([]byte, *refusal) {
	ctx := r.Context()
	segments := resource.SplitPath(r.PathValue("path"))
	path, err := resource.ParsePath(segments)
	if err != nil {
		return nil, &refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, err.Error()}
	}
	entry.Subject, rec.Subject = path.String(), path.String()
	claims, refused := s.claims(r, entry)
	if refused != nil {
		return nil, refused
	}
	if id, ok := claims["jti"].(string); ok {
		entry.Attestation, rec.AttestationID = id, id
	}
	query := map[string]string{}
	for k, v := range r.URL.Query() {
		query[k] = v[len(v)-1]
	}
	s.metrics.evaluations.Inc()
	d, err := s.Gate.Decide(ctx, resource.Request{Plugin: pluginResource, Path: segments, Query: query, Claims: claims})
	if err != nil {
		s.metrics.policyErrors.Inc()
		s.Log.ErrorContext(ctx, "evaluating the resource policy", "request", rec.ID, "error", err)
		return nil, &refusal{http.StatusUnauthorized, kbs.ErrorPolicyEngine, fmt.Sprintf("resource %s refused: evaluating the resource policy: %v", path, err)}
	}
	if !d.Allow {
		s.metrics.violations.Inc()
		return nil, s.denial(r, path, d, entry, rec)
	}
	s.metrics.approvals.Inc()
	secret, err := s.Resources.Get(ctx, path)
	if errors.Is(err, store.ErrNotFound) {
		return nil, &refusal{http.StatusNotFound, kbs.ErrorPluginInternal, fmt.Sprintf("resource %s does not exist", path)}
	}
	if err != nil {
		s.Log.ErrorContext(ctx, "reading a resource", "request", rec.ID, "error", err)
		return nil, &refusal{http.StatusUnauthorized, kbs.ErrorPluginInternal, fmt.Sprintf("resource %s cannot be read from the store", path)}
	}
	key, err := s.teeKey(claims)
	if err != nil {
		return nil, &refusal{http.StatusUnauthorized, kbs.ErrorTokenVerifier, err.Error()}
	}
	jwe, err := kbs.Encrypt(secret, key, false)
	if err != nil {
		return nil, &refusal{http.StatusUnauthorized, kbs.ErrorJWE, fmt.Sprintf("encrypting resource %s for the guest: %v", path, err)}
	}
	return jwe, nil
}

// denial is the text a guest gets when a policy says no. What the resource policy saw follows from the appraisals, so
// their findings are the reason a person wants; the resource policy's own are given when there are none.
func (s *Server) denial(r *http.Request, path resource.Path, d *resource.Decision, entry *audit.Entry, rec *decision.Record) *refusal {
	why, from := rego.Summary(d.Findings), d.Policy
	if rec.AttestationID != "" {
		attestation, err := s.Decisions.Get(r.Context(), rec.AttestationID)
		if err != nil {
			s.Log.WarnContext(r.Context(), "the attestation of a denial has no record", "request", rec.ID, "error", err)
		} else if summary, policies := attestation.Summary(); summary != "" {
			why, from = summary, strings.Join(policies, ", ")
		}
	}
	if why == "" {
		why = "the policy does not allow it"
	}
	rec.Policy, rec.Findings, entry.Policy = from, d.Findings, from
	return &refusal{http.StatusUnauthorized, kbs.ErrorPolicyDeny,
		fmt.Sprintf("resource %s refused: %s (policy %s, request %s)", path, why, from, requestID(r))}
}

// claims returns the verified claims of a request: those of its attested session, else those of its bearer token.
func (s *Server) claims(r *http.Request, entry *audit.Entry) (map[string]any, *refusal) {
	var missing error
	if sess, err := s.session(r); err != nil {
		missing = err
	} else if tok, ok := sess.Token(); !ok {
		missing = errors.New("the session is not attested")
	} else {
		entry.Session = sessionTag(sess.ID)
		claims, err := s.Tokens.Verify(tok)
		if err == nil {
			return claims, nil
		}
		missing = err
	}
	tok := bearer(r)
	if tok == "" {
		return nil, &refusal{http.StatusUnauthorized, kbs.ErrorTokenNotFound, fmt.Sprintf("no attestation: %v, and there is no bearer token", missing)}
	}
	claims, err := s.Tokens.Verify(tok)
	if err != nil {
		return nil, &refusal{http.StatusUnauthorized, kbs.ErrorTokenVerifier, err.Error()}
	}
	return claims, nil
}

// teeKey finds the guest's key in the claims of a token, at configured places first.
func (s *Server) teeKey(claims map[string]any) (kbs.JWK, error) {
	for _, pointer := range slices.Concat(s.TEEKeyPaths, teeKeyPaths) {
		if m, ok := at(claims, pointer).(map[string]any); ok {
			return jwk(m), nil
		}
	}
	return kbs.JWK{}, errors.New("the attestation token holds no key to encrypt to")
}

// at follows a JSON pointer (RFC 6901) through objects.
func at(v any, pointer string) any {
	for _, name := range strings.Split(strings.TrimPrefix(pointer, "/"), "/") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(name)]
	}
	return v
}

func jwk(m map[string]any) kbs.JWK {
	text := func(name string) string { v, _ := m[name].(string); return v }
	return kbs.JWK{
		Kty: text("kty"), Alg: text("alg"), Crv: text("crv"), X: text("x"), Y: text("y"), N: text("n"), E: text("e"),
	}
}

// putResource stores a secret.
func (s *Server) putResource(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event = "resource-write"
	path, err := resource.ParsePath(resource.SplitPath(r.PathValue("path")))
	if err != nil {
		return refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, err.Error()}
	}
	entry.Subject = path.String()
	body, err := readAll(r)
	if err != nil {
		return err
	}
	if err := s.Resources.Put(r.Context(), path, body); err != nil {
		s.Log.ErrorContext(r.Context(), "storing a resource", "request", requestID(r), "error", err)
		return refusal{http.StatusUnauthorized, kbs.ErrorPluginInternal, fmt.Sprintf("resource %s cannot be stored", path)}
	}
	s.metrics.writes.Inc()
	return nil
}

// deleteResource removes a secret.
func (s *Server) deleteResource(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event = "resource-delete"
	path, err := resource.ParsePath(resource.SplitPath(r.PathValue("path")))
	if err != nil {
		return refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, err.Error()}
	}
	entry.Subject = path.String()
	err = s.Resources.Delete(r.Context(), path)
	if errors.Is(err, store.ErrNotFound) {
		return refusal{http.StatusNotFound, kbs.ErrorPluginInternal, fmt.Sprintf("resource %s does not exist", path)}
	}
	if err != nil {
		s.Log.ErrorContext(r.Context(), "deleting a resource", "request", requestID(r), "error", err)
		return refusal{http.StatusUnauthorized, kbs.ErrorPluginInternal, fmt.Sprintf("resource %s cannot be deleted", path)}
	}
	s.metrics.deletes.Inc()
	return nil
}

// unknownPlugin answers what no other route takes.
func (s *Server) unknownPlugin(w http.ResponseWriter, r *http.Request) {
	first, _, _ := strings.Cut(r.PathValue("rest"), "/")
	switch r.Method {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete:
		if first == pluginResource {
			s.fail(w, r, refusal{http.StatusUnauthorized, kbs.ErrorPluginInternal, r.Method + " is not a thing to do with a resource: GET, POST and DELETE are"})
			return
		}
		s.fail(w, r, refusal{http.StatusNotFound, kbs.ErrorPluginNotFound, fmt.Sprintf("there is no plugin %.64q for %s", first, r.Method)})
	default:
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	}
}
