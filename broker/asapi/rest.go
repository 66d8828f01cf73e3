package asapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/token"
)

// REST is the HTTP form of the attestation service, for the paths of upstream's restful-as.
func (a *API) REST() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /attestation", a.postAttestation)
	mux.HandleFunc("POST /policy", a.postPolicy)
	mux.HandleFunc("GET /policy", a.getPolicies)
	mux.HandleFunc("POST /challenge", a.postChallenge)
	mux.HandleFunc("GET "+token.KeySetPath, func(w http.ResponseWriter, _ *http.Request) { reply(w, a.Tokens.KeySet()) })
	mux.Handle("GET "+token.DiscoveryPath, token.OIDC(a.Issuer))
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, MaxMessage)
		mux.ServeHTTP(w, r)
	})
}

// restRequest is the body of POST /attestation.
type restRequest struct {
	Requests []struct {
		TEE         string `json:"tee"`
		Evidence    string `json:"evidence"`
		RuntimeData *struct {
			Raw        *string         `json:"raw"`
			Structured json.RawMessage `json:"structured"`
		} `json:"runtime_data"`
		InitData *struct {
			Digest *string `json:"init_data_digest"`
			TOML   *string `json:"init_data_toml"`
		} `json:"init_data"`
		Hash string `json:"runtime_data_hash_algorithm"`
	} `json:"verification_requests"`
	PolicyIDs []string `json:"policy_ids"`
}

func (r restRequest) list() ([]evidence, error) {
	var list []evidence
	for i, q := range r.Requests {
		fail := func(what string, err error) ([]evidence, error) {
			return nil, fmt.Errorf("verification request %d: reading %s: %w", i+1, what, err)
		}
		e := evidence{tee: q.TEE, hash: q.Hash}
		var err error
		if e.text, err = unbase64(q.Evidence); err != nil {
			return fail("evidence", err)
		}
		if d := q.RuntimeData; d != nil {
			switch {
			case d.Raw != nil && d.Structured != nil:
				return fail("runtime_data", errors.New("it has raw and structured, want one of them"))
			case d.Raw != nil:
				if e.rawRuntime, err = unbase64(*d.Raw); err != nil {
					return fail("runtime_data.raw", err)
				}
			default:
				e.structured = d.Structured
			}
		}
		if d := q.InitData; d != nil {
			switch {
			case d.Digest != nil && d.TOML != nil:
				return fail("init_data", errors.New("it has init_data_digest and init_data_toml, want one of them"))
			case d.Digest != nil:
				if e.initDigest, err = unbase64(*d.Digest); err != nil {
					return fail("init_data_digest", err)
				}
			case d.TOML != nil:
				e.initTOML = *d.TOML
			}
		}
		list = append(list, e)
	}
	return list, nil
}

func (a *API) postAttestation(w http.ResponseWriter, r *http.Request) {
	var req restRequest
	if !read(w, r, &req) {
		return
	}
	list, err := req.list()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	signed, err := a.evaluate(r.Context(), a.Proxies.Client(r), list, req.PolicyIDs)
	if err != nil {
		fail(w, fmt.Errorf("attestation failed: %w", err))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, signed)
}

func (a *API) postPolicy(w http.ResponseWriter, r *http.Request) {
	var req struct {
		ID     string `json:"policy_id"`
		Policy string `json:"policy"`
	}
	if !read(w, r, &req) {
		return
	}
	err := a.setPolicy(r.Context(), a.Proxies.Client(r), adminauth.NewCall(r, a.Clients), req.ID, req.Policy)
	if err != nil {
		fail(w, err)
	}
}

func (a *API) getPolicies(w http.ResponseWriter, r *http.Request) {
	ids, err := a.Policies.IDs(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	out := []map[string]string{}
	for _, id := range ids {
		out = append(out, map[string]string{"policy-id": id})
	}
	reply(w, out)
}

func (a *API) postChallenge(w http.ResponseWriter, r *http.Request) {
	var req map[string]string
	if !read(w, r, &req) {
		return
	}
	text, err := a.challenge(r.Context(), req["tee"], req["tee_params"])
	if err != nil {
		fail(w, err)
		return
	}
	_, _ = io.WriteString(w, text)
}

// fail answers an error. Refused evidence is 500 as in upstream, whose clients know no other status for it.
func fail(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, outage.ErrUnavailable):
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", outage.RetryAfter)
	case errors.Is(err, adminauth.ErrDenied):
		status = http.StatusUnauthorized
	case errors.Is(err, errRequest), errors.Is(err, rego.ErrPolicy):
		status = http.StatusBadRequest
	}
	http.Error(w, err.Error(), status)
}

// read decodes a JSON body, or answers why it cannot be.
func read(w http.ResponseWriter, r *http.Request, into any) bool {
	err := json.NewDecoder(r.Body).Decode(into)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		http.Error(w, fmt.Sprintf("the request has more than %d bytes", tooLarge.Limit), http.StatusRequestEntityTooLarge)
	case err != nil:
		http.Error(w, "reading the request: "+err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}
