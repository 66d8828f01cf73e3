package server

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/wire/kbs"
)

// teeKeyPaths is where tokens carry the guest's key, in the order they are looked at: those of Intel's service, of an older
// upstream, and of this broker (kbs-protocol.md section 6).
var teeKeyPaths = []string{
	"/tdx/attester_runtime_data/tee-pubkey",
	"/tdx/attester_user_data/tee-pubkey",
	"/customized_claims/runtime_data/tee-pubkey",
	"/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey",
	"/tee-pubkey",
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

// denial is the text a guest gets when a policy says no. What the resource policy saw follows from the appraisals, so
// their findings are the reason a person wants; the resource policy's own are given when there are none.
func (s *Server) denial(r *http.Request, what string, d *resource.Decision, entry *audit.Entry, rec *decision.Record) *refusal {
	why, from := rego.Summary(d.Findings), d.Policy
	if rec.AttestationID != "" {
		attestation, err := s.Decisions.Get(r.Context(), rec.AttestationID)
		if err != nil {
			s.Log.WarnContext(r.Context(), "the attestation of a denial has no record", "request", rec.ID, "error", err)
		} else if summary, policies := attestation.Summary(); summary != "" {
			why, from = summary, strings.Join(policies, ", ")
		}
	}
	switch {
	case why == "":
		why = "the policy does not allow it"
	case len(d.Findings) == 0: // it would have said no to everybody, so that is the first thing to know
		why, from = "the resource policy has no rule that allows anything like it; besides, "+why, d.Policy+", "+from
	}
	rec.Policy, rec.Findings, entry.Policy = from, d.Findings, from
	return &refusal{http.StatusUnauthorized, kbs.ErrorPolicyDeny,
		fmt.Sprintf("%s refused: %s (policy %s, request %s)", what, why, from, requestID(r))}
}

// claims returns the verified claims of a request: those of its attested session, else those of its bearer token.
func (s *Server) claims(r *http.Request, entry *audit.Entry) (claims map[string]any, refused *refusal) {
	var missing error
	if sess, err := s.session(r); err != nil {
		missing = err
	} else if tok, ok := sess.Token(); !ok {
		missing = errors.New("the session is not attested")
	} else {
		entry.Session = sessionTag(sess.ID)
		claims, err := s.Tokens.Verify(tok)
		if err == nil {
			entry.Attestation = sess.Attestation()
			return claims, nil
		}
		missing = err
	}
	tok := adminauth.NewCall(r, nil).Bearer
	if tok == "" {
		return nil, &refusal{http.StatusUnauthorized, kbs.ErrorTokenNotFound, fmt.Sprintf("no attestation: %v, and there is no bearer token", missing)}
	}
	claims, err := s.Tokens.Verify(tok)
	if err != nil {
		return nil, &refusal{http.StatusUnauthorized, kbs.ErrorTokenVerifier, err.Error()}
	}
	entry.Attestation, _ = claims["jti"].(string)
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
