package hub

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/cloister/cloister/guest/attest"
)

// Feature says what the REST API answers.
type Feature string

// Features of the REST API; the empty Feature turns it off.
const (
	FeatureNone        Feature = ""
	FeatureResource    Feature = "resource"
	FeatureAttestation Feature = "attestation"
	FeatureAll         Feature = "all"
)

// ParseFeature reads agent.guest_components_rest_api.
func ParseFeature(s string) (Feature, error) {
	switch f := Feature(s); f {
	case FeatureResource, FeatureAttestation, FeatureAll:
		return f, nil
	}
	return FeatureNone, fmt.Errorf("REST feature is %q, expected resource, attestation or all", s)
}

const maxEventBody = 128 << 10

// Handler serves the REST API to processes of the pod. Anybody who can connect
// from the loopback interface is answered; nobody else is.
func (h *Hub) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLoopback(r.RemoteAddr) {
			text(w, http.StatusForbidden, "Forbidden")
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), rpcTimeout)
		defer cancel()
		h.route(w, r.WithContext(ctx))
	})
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func (h *Hub) route(w http.ResponseWriter, r *http.Request) {
	switch p := r.URL.Path; {
	case p == "/info":
		h.info(w, r)
	case p == "/aa" || strings.HasPrefix(p, "/aa/"):
		if h.rest == FeatureResource {
			text(w, http.StatusNotFound, "Attestation Feature Not Enabled")
			return
		}
		h.attestation(w, r, r.Method+" "+p)
	case p == "/cdh" || strings.HasPrefix(p, "/cdh/"):
		if h.rest == FeatureAttestation {
			text(w, http.StatusNotFound, "Resource Feature Not Enabled")
			return
		}
		h.resource(w, r, p)
	default:
		text(w, http.StatusNotFound, "URL NOT FOUND")
	}
}

func (h *Hub) attestation(w http.ResponseWriter, r *http.Request, request string) {
	switch request {
	case "GET /aa/token":
		h.token(w, r)
	case "GET /aa/evidence":
		if data, ok := runtimeData(r); !ok {
			text(w, http.StatusBadRequest, "BAD REQUEST")
		} else if e, err := h.agent.Evidence(r.Context(), data); err != nil {
			h.failed(w, "Get Evidence failed", err)
		} else {
			octets(w, e)
		}
	case "GET /aa/additional-evidence":
		if _, ok := runtimeData(r); !ok {
			text(w, http.StatusBadRequest, "BAD REQUEST")
		} else {
			octets(w, nil) // there are no attested devices
		}
	case "POST /aa/aael":
		h.event(w, r)
	default:
		text(w, http.StatusNotFound, "URL NOT FOUND")
	}
}

func (h *Hub) token(w http.ResponseWriter, r *http.Request) {
	tokenType := r.URL.Query().Get("token_type")
	if tokenType == "" {
		text(w, http.StatusBadRequest, "BAD REQUEST")
		return
	}
	t, err := h.agent.Token(r.Context(), tokenType)
	if err != nil {
		h.failed(w, "Get Token failed", err)
		return
	}
	octets(w, t)
}

// runtimeData reads the data that evidence is to be bound to.
func runtimeData(r *http.Request) ([]byte, bool) {
	q := r.URL.Query()
	if !q.Has("runtime_data") {
		return nil, false
	}
	v := q.Get("runtime_data")
	if !q.Has("encoding") {
		return []byte(v), true
	}
	if q.Get("encoding") != "base64" {
		return nil, false
	}
	b, err := base64.RawURLEncoding.DecodeString(v)
	return b, err == nil
}

func (h *Hub) event(w http.ResponseWriter, r *http.Request) {
	var e struct {
		Domain    *string `json:"domain"`
		Operation *string `json:"operation"`
		Content   *string `json:"content"`
	}
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxEventBody)).Decode(&e)
	if err == nil && (e.Domain == nil || e.Operation == nil || e.Content == nil) {
		err = errors.New("domain, operation and content are required")
	}
	if err != nil {
		h.failed(w, "Malformed runtime event", err)
		return
	}
	type answer struct {
		Success string `json:"success"`
		Message string `json:"message,omitempty"`
	}
	err = h.agent.MeasureForContainer(r.Context(), *e.Domain, *e.Operation, *e.Content)
	switch {
	case err == nil:
		writeJSON(w, answer{Success: "true"})
	case errors.Is(err, attest.ErrNoRegisters):
		writeJSON(w, answer{"false", "The platform does not support runtime measurement"})
	case errors.Is(err, attest.ErrEventsOff):
		writeJSON(w, answer{"false", "Attestation Agent does not enable eventlog recording"})
	case errors.Is(err, attest.ErrReserved), errors.Is(err, attest.ErrLogFull):
		// The program can do something about these.
		h.failed(w, "Extend Runtime Measurement failed: "+err.Error(), err)
	default:
		h.failed(w, "Extend Runtime Measurement failed", err)
	}
}

// resource serves the default plugin only, whatever the method, as upstream does.
func (h *Hub) resource(w http.ResponseWriter, r *http.Request, p string) {
	name, ok := strings.CutPrefix(p, "/cdh/resource/")
	if !ok || name == "" {
		text(w, http.StatusNotFound, "URL NOT FOUND")
		return
	}
	b, err := h.Resource(r.Context(), "kbs:///"+name)
	if err != nil {
		h.failed(w, "Get Resource failed", err)
		return
	}
	octets(w, b)
}

func (h *Hub) info(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		text(w, http.StatusMethodNotAllowed, "Method Not Allowed")
		return
	}
	answer := struct {
		Version string `json:"version"`
		TEE     string `json:"tee,omitempty"`
		Feature string `json:"feature"`
	}{Version: "Guest Components Version: " + h.version, Feature: string(h.rest)}
	if h.rest != FeatureResource {
		if tee, err := h.agent.TEE(); err == nil {
			answer.TEE = tee
		}
	}
	writeJSON(w, answer)
}

func (h *Hub) failed(w http.ResponseWriter, what string, err error) {
	h.log.Warn("REST API: "+what, "error", err)
	text(w, http.StatusInternalServerError, brief(what, err))
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // the client may be gone
}

func octets(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body) // the client may be gone
}

func writeJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		text(w, http.StatusInternalServerError, "writing the answer failed")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the client may be gone
}
