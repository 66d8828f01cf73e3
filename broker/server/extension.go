package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/plugin/resources"
	"github.com/cloister/cloister/broker/reload"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/kbs"
)

// Status is the answer of GET /cloister/v1/status.
type Status struct {
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Time     time.Time `json:"time"`
	Sessions int       `json:"sessions"`
	// Resources is -1 when they are kept where they cannot be counted.
	Resources           int               `json:"resources"`
	ReferenceValues     int               `json:"reference_values"`
	AttestationPolicies []string          `json:"attestation_policies"`
	Verifiers           []verifier.Status `json:"verifiers"`
	Plugins             []plugin.Status   `json:"plugins"`
	Insecure            []string          `json:"insecure"`
	Reloads             []reload.Status   `json:"reloads,omitempty"`
	AuditEntries        uint64            `json:"audit_entries"`
	AuditHead           string            `json:"audit_head"`
}

func (s *Server) status(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
	ctx := r.Context()
	st := Status{
		Version: s.Version, Started: s.started.UTC(), Time: s.Now().UTC(), Sessions: s.Sessions.Len(),
		Verifiers: s.Verifiers.Status(), Plugins: s.Plugins.Status(), Insecure: s.Insecure,
	}
	if s.Reloads != nil {
		st.Reloads = s.Reloads.Status()
	}
	st.AuditEntries, st.AuditHead = s.Audit.Head()
	var err error
	if st.Resources, err = s.Resources.Count(ctx); resources.Unsupported(err) {
		st.Resources = -1
	} else if err != nil {
		return fmt.Errorf("counting resources: %w", err)
	}
	records, err := s.References.List(ctx)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("counting reference values: %w", err)
	}
	st.ReferenceValues = len(records)
	if st.AttestationPolicies, err = s.AttestationPolicies.IDs(ctx); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("listing policies: %w", err)
	}
	s.reply(w, r, st)
	return nil
}

// readyTimeout is how long the database may take to answer a probe.
const readyTimeout = 2 * time.Second

// readiness answers probes of balancers: 200 when requests can be served, 503 when they cannot. The reason stays in the log.
func (s *Server) readiness(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	if s.Ready == nil {
		return
	}
	if err := s.Ready(ctx); err != nil {
		s.Log.WarnContext(ctx, "not ready", "error", err)
		http.Error(w, "not ready", http.StatusServiceUnavailable)
	}
}

// auditPage is the most audit entries of one answer.
const auditPage = 1000

func (s *Server) auditSince(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
	var since uint64
	if text := r.URL.Query().Get("since"); text != "" {
		var err error
		if since, err = strconv.ParseUint(text, 10, 64); err != nil {
			return refusal{http.StatusBadRequest, kbs.ErrorInvalidRequestPath, fmt.Sprintf("since is %.32q, want the number of an audit entry", text)}
		}
	}
	entries, err := s.Audit.Since(r.Context(), since, auditPage)
	if err != nil {
		return err
	}
	s.reply(w, r, entries)
	return nil
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
	rec, err := s.Decisions.Get(r.Context(), r.PathValue("id"))
	if errors.Is(err, store.ErrNotFound) {
		return refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, fmt.Sprintf("there is no record of request %.64q; records are a bounded history", r.PathValue("id"))}
	}
	if err != nil {
		return err
	}
	s.reply(w, r, rec)
	return nil
}

// listResources tells an admin the names, versions and sizes of resources, and nothing else of them.
func (s *Server) listResources(w http.ResponseWriter, r *http.Request, _ *audit.Entry) error {
	q := r.URL.Query()
	limit := 0
	if text := q.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 {
			return refusal{http.StatusBadRequest, kbs.ErrorInvalidRequestPath, fmt.Sprintf("limit is %.32q, want a number from 1", text)}
		}
	}
	list, err := s.Resources.List(r.Context(), strings.TrimSuffix(q.Get("prefix"), "/"), q.Get("after"), limit)
	switch {
	case resources.Unsupported(err):
		return refusal{http.StatusNotImplemented, kbs.ErrorPluginInternal, err.Error()}
	case errors.Is(err, resource.ErrPath):
		return refusal{http.StatusBadRequest, kbs.ErrorInvalidRequestPath, err.Error()}
	case err != nil:
		return fmt.Errorf("listing resources: %w", err)
	}
	if list == nil {
		list = []resource.Info{}
	}
	s.reply(w, r, list)
	return nil
}
