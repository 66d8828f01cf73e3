package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/span"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/wire/kbs"
)

// versionHeader tells the version of a resource that was read or written.
const versionHeader = "Cloister-Version"

// plugin answers what is below /kbs/v0/ and no route of its own: resources, and everything else that plugins give out.
func (s *Server) plugin(w http.ResponseWriter, r *http.Request) {
	name, rest, _ := strings.Cut(r.PathValue("rest"), "/")
	switch r.Method {
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete:
	default:
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	p, ok := s.Plugins.Lookup(name)
	if !ok {
		s.fail(w, r, refusal{http.StatusNotFound, kbs.ErrorPluginNotFound, fmt.Sprintf("there is no plugin %.64q for %s", name, r.Method)})
		return
	}
	body, err := readAll(r)
	if err != nil {
		s.failBody(w, r, kbs.ErrorPluginInternal, err)
		return
	}
	c := &pluginCall{
		s: s, r: r, name: name, what: name + " " + rest, entry: audit.Entry{Event: event(name, r.Method), Subject: subject(name, rest)},
		rec: decision.Record{ID: requestID(r), Time: s.Now().UTC(), Kind: decision.KindResource, Decision: audit.Deny, Subject: subject(name, rest)},
	}
	start := time.Now()
	answer, err := c.do(p, rest, body)
	s.metrics.plugin(name, time.Since(start))
	if err != nil {
		c.refuse(w, err)
		return
	}
	c.send(w, answer)
}

// event is what the audit log calls a request.
func event(name, method string) string {
	if name != resource.PluginName {
		return "plugin"
	}
	switch method {
	case http.MethodGet:
		return "resource-read"
	case http.MethodDelete:
		return "resource-delete"
	}
	return "resource-write"
}

// subject is what the audit log says a request is about: resources go by their path alone.
func subject(name, rest string) string {
	if name == resource.PluginName {
		return rest
	}
	return name + "/" + rest
}

// pluginCall is one request to a plugin. It is what admits the caller, and remembers who that was.
type pluginCall struct {
	s          *Server
	r          *http.Request
	name, what string
	entry      audit.Entry
	rec        decision.Record
	admin      string         // who was admitted
	claims     map[string]any // of the guest that was
}

var _ plugin.Access = (*pluginCall)(nil)

// change reports whether the request is to be recorded before it is carried out.
func (c *pluginCall) change() bool { return c.r.Method != http.MethodGet }

func (c *pluginCall) do(p plugin.Plugin, rest string, body []byte) (*plugin.Answer, error) {
	req, err := plugin.NewRequest(c.r.Method, rest, c.r.URL.Query(), body)
	if err != nil {
		return nil, refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, err.Error()}
	}
	return plugin.Do(c.r.Context(), p, req, c)
}

// Admin is part of plugin.Access. A change is recorded as tried before it is made.
func (c *pluginCall) Admin(ctx context.Context, _ *plugin.Request) error {
	name, err := c.s.Admins.Admit(ctx, c.s.caller(c.r))
	if err != nil {
		return refusal{http.StatusUnauthorized, kindPlugin, err.Error()}
	}
	c.admin = name
	if !c.change() {
		return nil
	}
	tried := c.entry
	tried.Decision, tried.Reason = audit.Allow, "admitted "+name
	if err := c.s.note(c.r, tried); err != nil {
		c.s.metrics.auditErrors.Inc()
		return refusal{http.StatusUnauthorized, kindPlugin, "the audit log cannot be written, so nothing is changed"}
	}
	return nil
}

// Guest is part of plugin.Access. Nothing tells an existing resource from a missing one before the policy has said yes.
func (c *pluginCall) Guest(ctx context.Context, req *plugin.Request) (map[string]any, error) {
	s := c.s
	claims, refused := s.claims(c.r, &c.entry)
	if refused != nil {
		return nil, *refused
	}
	c.rec.AttestationID = c.entry.Attestation
	s.metrics.evaluations.Inc()
	deciding, end := span.Start(ctx, span.Policy)
	d, err := s.Gate.Decide(deciding, resource.Request{Plugin: c.name, Path: req.Path, Query: req.Query, Claims: claims})
	end(err)
	if err != nil {
		s.metrics.policyErrors.Inc()
		s.Log.ErrorContext(ctx, "evaluating the resource policy", "request", c.rec.ID, "error", err)
		return nil, refusal{http.StatusUnauthorized, kbs.ErrorPolicyEngine, fmt.Sprintf("%s refused: evaluating the resource policy: %v", c.what, err)}
	}
	if !d.Allow {
		s.metrics.violations.Inc()
		return nil, *s.denial(c.r, c.what, d, &c.entry, &c.rec)
	}
	if c.change() { // what a guest makes a plugin do is recorded before it is done, as with an administrator
		tried := c.entry
		tried.Decision, tried.Reason = audit.Allow, "the policy allows it"
		if err := s.note(c.r, tried); err != nil {
			s.metrics.auditErrors.Inc()
			return nil, refusal{http.StatusUnauthorized, kbs.ErrorPluginInternal, "the audit log cannot be written, so nothing is done"}
		}
	}
	s.metrics.approvals.Inc()
	c.claims = claims
	initData, _ := at(claims, initDataClaims).(map[string]any)
	return initData, nil
}

// initDataClaims is where a token of this broker has what the guest's init data says.
const initDataClaims = "/submods/cpu0/ear.veraison.annotated-evidence/init_data_claims"

// refusal turns what went wrong into an answer. Errors of plugins that are not the client's fault stay in the log.
func (c *pluginCall) refusal(err error) refusal {
	var f refusal
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, store.ErrNotFound):
		return refusal{http.StatusNotFound, kbs.ErrorPluginInternal, c.what + " does not exist"}
	case errors.Is(err, resource.ErrPath):
		return refusal{http.StatusNotFound, kbs.ErrorInvalidRequestPath, err.Error()}
	case errors.Is(err, plugin.ErrRequest), errors.Is(err, resource.ErrQuota), errors.Is(err, resource.ErrReadOnly), errors.Is(err, store.ErrFull):
		return refusal{http.StatusUnauthorized, kbs.ErrorPluginInternal, err.Error()}
	}
	c.s.metrics.pluginErrors.WithLabelValues(c.name).Inc()
	c.s.Log.ErrorContext(c.r.Context(), "a plugin failed", "request", c.rec.ID, "plugin", c.name, "error", err)
	return refusal{http.StatusUnauthorized, kbs.ErrorPluginInternal, c.what + ": the plugin failed, the broker's log has the reason"}
}

func (c *pluginCall) refuse(w http.ResponseWriter, err error) {
	s, f := c.s, c.refusal(err)
	c.entry.Decision, c.entry.Reason = audit.Deny, f.detail
	if c.admin != "" {
		c.entry.Decision = audit.Error
	}
	s.noteRefusal(c.r, c.entry)
	if c.admin == "" {
		c.rec.Reason = f.detail
		s.keep(c.r, c.rec)
		s.Log.WarnContext(c.r.Context(), "refused", "request", c.rec.ID, "subject", c.entry.Subject, "why", f.detail)
	}
	s.fail(w, c.r, f)
}

// send gives an answer, after it was recorded.
func (c *pluginCall) send(w http.ResponseWriter, a *plugin.Answer) {
	s := c.s
	body, contentType := a.Body, "text/xml"
	if a.Encrypt {
		var err error
		if body, err = c.encrypt(a.Body); err != nil {
			c.refuse(w, err)
			return
		}
		contentType = "application/json"
	}
	c.entry.Decision = audit.Allow
	if a.Admin {
		c.entry.Reason = "done by " + c.admin
		if c.change() {
			// It is done: a log that cannot be written any more has the entry of the try.
			s.noteRefusal(c.r, c.entry)
		} else if err := s.note(c.r, c.entry); err != nil { // plugins may give secrets to administrators too
			s.metrics.auditErrors.Inc()
			s.fail(w, c.r, refusal{http.StatusUnauthorized, kindPlugin, "the audit log cannot be written, so nothing is released"})
			return
		}
	} else {
		if err := s.note(c.r, c.entry); err != nil {
			s.metrics.auditErrors.Inc()
			s.fail(w, c.r, refusal{http.StatusUnauthorized, kbs.ErrorPluginInternal, "the audit log cannot be written, so nothing is released"})
			return
		}
		s.Log.InfoContext(c.r.Context(), "released", "request", c.rec.ID, "subject", c.entry.Subject, "attestation", c.entry.Attestation)
	}
	if c.name == resource.PluginName {
		s.metrics.resource(c.r.Method)
	}
	if a.Admin && json.Valid(body) {
		contentType = "application/json"
	}
	if a.Version > 0 {
		w.Header().Set(versionHeader, strconv.FormatUint(a.Version, 10))
	}
	s.send(w, c.r, contentType, body)
}

// encrypt makes a JWE to the key in the token of the guest.
func (c *pluginCall) encrypt(secret []byte) ([]byte, error) {
	key, err := c.s.teeKey(c.claims)
	if err != nil {
		return nil, refusal{http.StatusUnauthorized, kbs.ErrorTokenVerifier, err.Error()}
	}
	jwe, err := kbs.Encrypt(secret, key, c.s.RSA15)
	if err != nil {
		return nil, refusal{http.StatusUnauthorized, kbs.ErrorJWE, fmt.Sprintf("encrypting %s for the guest: %v", c.what, err)}
	}
	return jwe, nil
}

// caller is who makes a request, for the administrators' authority.
func (s *Server) caller(r *http.Request) adminauth.Call {
	c := adminauth.NewCall(r, s.Clients)
	c.Path = s.Prefix + c.Path
	return c
}

// Caller is who the certificate of a connection says that it is, for handlers that were added.
func (s *Server) Caller(r *http.Request) adminauth.Call {
	return adminauth.Call{}.With(r.TLS, s.Clients)
}
