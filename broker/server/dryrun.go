package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/dryrun"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/wire/kbs"
)

// trials appraises saved evidence again; see dryrun.Service.
type trials interface {
	Run(ctx context.Context, r dryrun.Request) (*dryrun.Result, error)
}

// dryRun answers POST /cloister/v1/appraisals/dry-run: what would be decided about a recorded attestation, or about saved
// evidence, by another policy or other reference values. Only the audit log is written.
func (s *Server) dryRun(w http.ResponseWriter, r *http.Request, entry *audit.Entry) error {
	entry.Event = "dry-run"
	body, err := readAll(r)
	if err != nil {
		return err
	}
	var req dryrun.Request
	if err := json.Unmarshal(body, &req); err != nil {
		return refusal{http.StatusBadRequest, kbs.ErrorInvalidRequestPath, fmt.Sprintf("reading the request for a dry run: %v", err)}
	}
	entry.Subject, entry.Policy = "evidence", req.PolicyID
	if req.RecordID != "" {
		entry.Subject = fmt.Sprintf("record %.64q", req.RecordID)
	}
	if req.Policy != "" {
		entry.Policy = "candidate"
	}
	result, err := s.Trials.Run(r.Context(), req)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, fmt.Sprintf("there is no record of request %.64q; records are a bounded history", req.RecordID)}
	case errors.Is(err, rego.ErrPolicy), errors.Is(err, rego.ErrUnknown):
		return refusal{http.StatusBadRequest, kbs.ErrorParsePolicy, err.Error()}
	case errors.Is(err, dryrun.ErrRequest):
		return refusal{http.StatusBadRequest, kbs.ErrorAttestation, err.Error()}
	case err != nil:
		return fmt.Errorf("making a dry run: %w", err)
	}
	s.reply(w, r, result)
	return nil
}
