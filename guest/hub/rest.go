package hub

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"strings"

	"github.com/cloister/cloister/wire/aa"
)

// Features says which parts of the REST API containers may use; the names are those of agent.guest_components_rest_api.
type Features string

// The features.
const (
	FeatureResource    Features = "resource"
	FeatureAttestation Features = "attestation"
	FeatureAll         Features = "all"
)

// Valid says whether f is one of the features.
func (f Features) Valid() bool {
	return f == FeatureResource || f == FeatureAttestation || f == FeatureAll
}

// rest is the API for containers (guest-api.md section 4). It is plain HTTP without authentication: the pod's loopback
// is inside the guest.
type rest struct {
	hub   *Hub
	parts Parts
}

// maxBody bounds what a container may send.
const maxBody = 1 << 20

func newREST(h *Hub, p Parts) http.Handler {
	if p.Features == "" {
		p.Features = FeatureResource
	}
	r := &rest{hub: h, parts: p}
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		peer, err := netip.ParseAddrPort(q.RemoteAddr)
		if err != nil || !peer.Addr().Unmap().IsLoopback() {
			http.Error(w, "Forbidden", http.StatusForbidden)
			return
		}
		q.Body = http.MaxBytesReader(w, q.Body, maxBody)
		r.route(w, q)
	})
}

func (r *rest) route(w http.ResponseWriter, q *http.Request) {
	switch path := q.URL.Path; {
	case path == "/info":
		r.info(w, q)
	case strings.HasPrefix(path, "/aa/"):
		if r.parts.Features == FeatureResource {
			http.Error(w, "Attestation Feature Not Enabled", http.StatusNotFound)
			return
		}
		r.attestation(w, q)
	case strings.HasPrefix(path, "/cdh/"):
		if r.parts.Features == FeatureAttestation {
			http.Error(w, "Resource Feature Not Enabled", http.StatusNotFound)
			return
		}
		r.resource(w, q)
	default:
		http.Error(w, "URL NOT FOUND", http.StatusNotFound)
	}
}

func (r *rest) resource(w http.ResponseWriter, q *http.Request) {
	path, ok := strings.CutPrefix(q.URL.Path, "/cdh/resource/")
	if !ok || path == "" {
		http.Error(w, "URL NOT FOUND", http.StatusNotFound)
		return
	}
	b, err := r.hub.Resource(q.Context(), "kbs:///"+path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	octets(w, b)
}

func (r *rest) attestation(w http.ResponseWriter, q *http.Request) {
	ctx := q.Context()
	query := q.URL.Query()
	switch {
	case q.Method == http.MethodGet && q.URL.Path == "/aa/token":
		kind := query.Get("token_type")
		if kind == "" {
			http.Error(w, "BAD REQUEST", http.StatusBadRequest)
			return
		}
		out, err := r.parts.Agent.GetToken(ctx, &aa.GetTokenRequest{TokenType: kind})
		reply(w, out.GetToken(), err)
	case q.Method == http.MethodGet && (q.URL.Path == "/aa/evidence" || q.URL.Path == "/aa/additional-evidence"):
		data, ok := runtimeData(query.Has("runtime_data"), query.Get("runtime_data"), query.Get("encoding"))
		if !ok {
			http.Error(w, "BAD REQUEST", http.StatusBadRequest)
			return
		}
		if q.URL.Path == "/aa/evidence" {
			out, err := r.parts.Agent.GetEvidence(ctx, &aa.GetEvidenceRequest{RuntimeData: data})
			reply(w, out.GetEvidence(), err)
			return
		}
		out, err := r.parts.Agent.GetAdditionalEvidence(ctx, &aa.GetAdditionalEvidenceRequest{RuntimeData: data})
		reply(w, out.GetEvidence(), err)
	case q.Method == http.MethodPost && q.URL.Path == "/aa/aael":
		r.extend(w, q)
	default:
		http.Error(w, "URL NOT FOUND", http.StatusNotFound)
	}
}

func runtimeData(given bool, text, encoding string) ([]byte, bool) {
	switch {
	case !given:
		return nil, false
	case encoding == "":
		return []byte(text), true
	case encoding == "base64":
		b, err := base64.RawURLEncoding.DecodeString(text)
		return b, err == nil
	}
	return nil, false
}

// extend records an event in the run-time measurement register.
func (r *rest) extend(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	var event struct{ Domain, Operation, Content *string }
	if err == nil {
		err = json.Unmarshal(body, &event)
	}
	if err != nil || event.Domain == nil || event.Operation == nil || event.Content == nil {
		http.Error(w, "BAD REQUEST: want domain, operation and content", http.StatusBadRequest)
		return
	}
	out, err := r.parts.Agent.ExtendRuntimeMeasurement(q.Context(), &aa.ExtendRuntimeMeasurementRequest{
		Domain: *event.Domain, Operation: *event.Operation, Content: *event.Content,
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer := map[string]string{"success": "true"}
	switch out.GetResult() {
	case aa.RuntimeMeasurementResult_NOT_SUPPORTED:
		answer = map[string]string{"success": "false", "message": "The platform does not support runtime measurement"}
	case aa.RuntimeMeasurementResult_NOT_ENABLED:
		answer = map[string]string{"success": "false", "message": "Attestation Agent does not enable eventlog recording"}
	}
	jsonReply(w, answer)
}

func (r *rest) info(w http.ResponseWriter, q *http.Request) {
	if q.Method != http.MethodGet {
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	out, err := r.parts.Agent.GetTeeType(q.Context(), &aa.GetTeeTypeRequest{})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	jsonReply(w, map[string]string{
		"version": "Guest Components Version: cloister " + r.parts.Version, "tee": out.GetTee(), "feature": string(r.parts.Features),
	})
}

func reply(w http.ResponseWriter, b []byte, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	octets(w, b)
}

func octets(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(b)
}

func jsonReply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
