package server

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/wire/kbs"
)

// The protocol gives a refused admin another error name on plugin paths than on its own.
const (
	kindAdmin  = kbs.ErrorAdminAuthAccess
	kindPlugin = kbs.ErrorAdminAuthPlugin
)

// adminHandler does one admin request. It fills in the event and subject of the audit entry, and either has answered, or
// returns an error, or leaves an empty answer to be sent.
type adminHandler func(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error

// admin lets a handler run only for admins and records what it did. A change is recorded as tried before it is made and
// again with its outcome; reading is recorded only when it is refused.
func (s *Server) admin(kind string, h adminHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		entry := audit.Entry{Event: "admin", Subject: r.Method + " " + r.URL.Path}
		name, err := s.Admins.Admit(r.Context(), s.caller(r))
		if err != nil {
			entry.Decision, entry.Reason = audit.Deny, err.Error()
			s.noteRefusal(r, entry)
			s.fail(w, r, refusal{http.StatusUnauthorized, kind, err.Error()})
			return
		}
		change := r.Method != http.MethodGet
		if change {
			entry.Decision, entry.Reason = audit.Allow, "admitted "+name
			if err := s.note(r, entry); err != nil {
				s.metrics.auditErrors.Inc()
				s.fail(w, r, refusal{http.StatusUnauthorized, kind, "the audit log cannot be written, so nothing is changed"})
				return
			}
		}
		done := entry
		err = h(w, r, &done)
		if err == nil {
			if change {
				done.Decision, done.Reason = audit.Allow, "done by "+name
				s.noteRefusal(r, done)
				w.WriteHeader(http.StatusOK)
			}
			return
		}
		if change {
			done.Decision, done.Reason = audit.Error, err.Error()
			s.noteRefusal(r, done)
		}
		var f refusal
		if errors.As(err, &f) {
			s.fail(w, r, f)
			return
		}
		s.failBody(w, r, kbs.ErrorPluginInternal, err)
	}
}

func policyRefusal(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	return refusal{http.StatusUnauthorized, kbs.ErrorParsePolicy, err.Error()}
}

// policyText reads the body of a set-policy request.
func policyText(r *http.Request) (id, text string, err error) {
	body, err := readAll(r)
	if err != nil {
		return "", "", err
	}
	var m struct {
		ID     string `json:"policy_id"`
		Policy string `json:"policy"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return "", "", fmt.Errorf("reading the policy message: %w", err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(m.Policy, "="))
	if err != nil {
		return "", "", fmt.Errorf("reading the policy text: %w", err)
	}
	return m.ID, string(raw), nil
}

func (s *Server) setAttestationPolicy(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event = "attestation-policy"
	id, text, err := policyText(r)
	if err != nil {
		return policyRefusal(err)
	}
	entry.Subject, entry.Policy = id, id
	if err := s.AttestationPolicies.Put(r.Context(), id, text); err != nil {
		return refusal{http.StatusUnauthorized, kbs.ErrorAttestation, "Attestation error: Set Attestation Policy failed: " + err.Error()}
	}
	return nil
}

func (s *Server) setResourcePolicy(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event, entry.Subject, entry.Policy = "resource-policy", resource.PolicyID, resource.PolicyID
	_, text, err := policyText(r)
	if err != nil {
		return policyRefusal(err)
	}
	if err := s.ResourcePolicies.Put(r.Context(), resource.PolicyID, text); err != nil {
		if unusable(err) {
			return refusal{http.StatusUnauthorized, kbs.ErrorPolicyEngine, err.Error()}
		}
		return refusal{http.StatusUnauthorized, kbs.ErrorPolicyEngine, "storing the resource policy failed"}
	}
	return nil
}

func (s *Server) listResourcePolicies(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
	ids, err := s.ResourcePolicies.IDs(r.Context())
	if err != nil {
		return refusal{http.StatusUnauthorized, kbs.ErrorPolicyEngine, err.Error()}
	}
	s.reply(w, r, ids)
	return nil
}

// listAttestationPolicies and readPolicy are additions to the protocol, in which the texts of policies cannot be had.
func (s *Server) listAttestationPolicies(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
	ids, err := s.AttestationPolicies.IDs(r.Context())
	if err != nil {
		return refusal{http.StatusUnauthorized, kbs.ErrorAttestation, err.Error()}
	}
	s.reply(w, r, ids)
	return nil
}

// readPolicy answers with the text of a policy as it is stored.
func (s *Server) readPolicy(set policySet, name string) adminHandler {
	return func(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
		id := r.PathValue("id")
		text, err := set.Text(r.Context(), id)
		if errors.Is(err, rego.ErrUnknown) {
			return refusal{http.StatusNotFound, name, fmt.Sprintf("there is no policy %.128q", id)}
		}
		if err != nil {
			return refusal{http.StatusUnauthorized, name, err.Error()}
		}
		s.send(w, r, "text/plain; charset=utf-8", []byte(text))
		return nil
	}
}

func (s *Server) registerReferenceValues(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event = "reference-value"
	body, err := readAll(r)
	if err != nil {
		return err
	}
	names, err := s.References.Register(r.Context(), body, "admin")
	if err != nil {
		return refusal{http.StatusUnauthorized, kbs.ErrorRVPS, err.Error()}
	}
	entry.Subject = strings.Join(names, " ")
	w.Header().Set("Content-Type", "application/json")
	return nil
}

func (s *Server) listReferenceValues(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
	records, err := s.References.List(r.Context())
	if err != nil {
		return refusal{http.StatusUnauthorized, kbs.ErrorRVPS, err.Error()}
	}
	s.reply(w, r, records)
	return nil
}

func (s *Server) getReferenceValue(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
	id := r.PathValue("id")
	record, err := s.References.Get(r.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return refusal{http.StatusUnauthorized, kbs.ErrorRVPS, fmt.Sprintf("there is no reference value %.128q", id)}
	}
	if err != nil {
		return refusal{http.StatusUnauthorized, kbs.ErrorRVPS, err.Error()}
	}
	s.reply(w, r, record.Value)
	return nil
}

func (s *Server) deleteReferenceValue(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	id := r.PathValue("id")
	entry.Event, entry.Subject = "reference-value-delete", id
	err := s.References.Delete(r.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return refusal{http.StatusNotFound, kbs.ErrorRVPS, fmt.Sprintf("there is no reference value %.128q", id)}
	}
	if err != nil {
		return refusal{http.StatusUnauthorized, kbs.ErrorRVPS, err.Error()}
	}
	return nil
}

// deleteReferenceGroup removes what was registered with a group and tells which names that were.
func (s *Server) deleteReferenceGroup(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	group := r.PathValue("group")
	entry.Event, entry.Subject = "reference-value-delete", "group "+group
	names, err := s.References.DeleteGroup(r.Context(), group)
	if errors.Is(err, store.ErrNotFound) || err == nil && len(names) == 0 {
		return refusal{http.StatusNotFound, kbs.ErrorRVPS, fmt.Sprintf("no reference value is of group %.128q", group)}
	}
	if err != nil {
		return refusal{http.StatusUnauthorized, kbs.ErrorRVPS, err.Error()}
	}
	s.reply(w, r, names)
	return nil
}
