// Package asapi offers the attestation service and the reference value store to key brokers elsewhere, over gRPC and REST
// (attestation-service.md sections 2, 3 and 9).
//
// Upstream's services take everything from everybody. Here evaluating is open to whoever reaches the address, as a verdict tells
// nothing but what the evidence says, while changing policies and reference values needs an administrator.
package asapi

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/attestation"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/outage"
	"github.com/cloister/cloister/broker/ratelimit"
	"github.com/cloister/cloister/broker/token"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/kbs"
)

// MaxMessage bounds one request; event logs can be long.
const MaxMessage = 8 << 20

const maxItems = 64

// The services by name.
const (
	ServiceAttestation = "as"
	ServiceReferences  = "rvps"
)

// Services are all there are.
func Services() []string { return []string{ServiceAttestation, ServiceReferences} }

type attester interface {
	Challenge(ctx context.Context, tee string, params json.RawMessage) (*verifier.Challenge, error)
	Evaluate(ctx context.Context, id, policy string, items []attestation.Item) (*attestation.Verdict, error)
}

type policies interface {
	Put(ctx context.Context, id, text string) error
	IDs(ctx context.Context) ([]string, error)
}

type references interface {
	Register(ctx context.Context, message []byte, by string) ([]string, error)
	Lookup(ctx context.Context, name string) (json.RawMessage, error)
}

type auditLog interface {
	Append(ctx context.Context, e audit.Entry) error
}

type decisions interface {
	Put(ctx context.Context, r decision.Record) error
}

type keys interface {
	KeySet() map[string][]token.JWK
}

// Parts is what an API is put together from.
type Parts struct {
	Log         *slog.Logger
	Now         func() time.Time
	Attestation attester
	Policies    policies
	References  references
	Audit       auditLog
	Decisions   decisions
	Tokens      keys
	Admins      adminauth.Authority
	// Clients tells whose certificate a connection has; nil when none counts.
	Clients adminauth.Identifier
	// Services are those that are offered over gRPC; nil means both. REST is of the attestation service alone.
	Services []string
	// Proxies are those whose word on a client's address counts; nil means none.
	Proxies *ratelimit.Proxies
	// Issuer is the address that relying parties know the REST form by, for OIDC discovery; "" means whatever they called.
	Issuer string
	// Concurrent is how many requests are evaluated at the same time; zero means no limit.
	Concurrent int
}

// handleTimeout bounds one request.
const handleTimeout = 50 * time.Second

// API is both services.
type API struct {
	Parts
	slots chan struct{}
}

// New makes an API.
func New(p Parts) *API {
	a := &API{Parts: p}
	if p.Concurrent > 0 {
		a.slots = make(chan struct{}, p.Concurrent)
	}
	return a
}

// note writes an audit entry. A client that hangs up ends its request, but not the entry: it could otherwise try evidence and tokens
// without leaving a trace.
func (a *API) note(ctx context.Context, e audit.Entry) error {
	return a.Audit.Append(context.WithoutCancel(ctx), e)
}

// slot waits for a place among the evaluations under way and returns how to give it back.
func (a *API) slot(ctx context.Context) (func(), error) {
	if a.slots == nil {
		return func() {}, nil
	}
	select {
	case a.slots <- struct{}{}:
		return func() { <-a.slots }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: it is busy with other evidence", outage.ErrUnavailable)
	}
}

// evidence is one verification request in either protocol.
type evidence struct {
	tee  string
	text []byte // JSON
	// rawRuntime is the report data itself, structured what it is a digest of; at most one of them is set.
	rawRuntime []byte
	structured json.RawMessage
	// initDigest is the digest of the init data, initTOML its text; at most one of them is set.
	initDigest []byte
	initTOML   string
	hash       string
}

// errRequest is wrapped by refusals of requests that nobody could answer, whatever the evidence says.
var errRequest = errors.New("the request cannot be used")

// evaluate does one attestation and records it before the token is handed out.
func (a *API) evaluate(ctx context.Context, remote string, list []evidence, policyIDs []string) (string, error) {
	id, err := decision.NewID(a.Now())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, handleTimeout)
	defer cancel()
	entry := audit.Entry{Event: "attestation-api", RequestID: id, Remote: remote}
	token := ""
	release, err := a.slot(ctx)
	if err == nil {
		defer release()
		token, err = a.verdict(ctx, id, list, policyIDs, &entry)
	}
	if err != nil {
		entry.Decision, entry.Reason = audit.Deny, err.Error()
		if aerr := a.note(ctx, entry); aerr != nil {
			a.Log.ErrorContext(ctx, "writing the audit log", "request", id, "error", aerr)
		}
		a.Log.WarnContext(ctx, "attestation refused", "request", id, "why", err)
		return "", fmt.Errorf("%w (request %s)", err, id)
	}
	return token, nil
}

func (a *API) verdict(ctx context.Context, id string, list []evidence, policyIDs []string, entry *audit.Entry) (string, error) {
	if n := len(list); n == 0 || n > maxItems {
		return "", fmt.Errorf("%w: it has %d pieces of evidence, want 1 to %d", errRequest, n, maxItems)
	}
	policy := appraise.DefaultPolicy
	if len(policyIDs) > 0 {
		policy = policyIDs[0]
	}
	if len(policyIDs) > 1 {
		a.Log.WarnContext(ctx, "only the first policy id is used", "request", id, "used", policy, "given", len(policyIDs))
	}
	items := make([]attestation.Item, len(list))
	for i, e := range list {
		var err error
		if items[i], err = e.item(); err != nil {
			return "", fmt.Errorf("%w: verification request %d (%.32s): %w", errRequest, i+1, e.tee, err)
		}
	}
	entry.TEE = items[0].TEE
	v, err := a.Attestation.Evaluate(ctx, id, policy, items)
	if err != nil {
		return "", err
	}
	if err := a.Decisions.Put(ctx, v.Record); err != nil {
		return "", err
	}
	var statuses []string
	for _, p := range v.Record.Parts {
		statuses = append(statuses, p.Name+"="+p.Status)
	}
	summary, from := v.Record.Summary()
	entry.Decision, entry.Attestation, entry.Reason = audit.Allow, id, summary
	entry.Status, entry.Policy = strings.Join(statuses, " "), strings.Join(from, " ")
	if err := a.note(ctx, *entry); err != nil {
		return "", errors.New("the audit log cannot be written")
	}
	a.Log.InfoContext(ctx, "attested for another broker", "request", id, "tee", entry.TEE, "status", entry.Status)
	return v.Token, nil
}

func (e evidence) item() (attestation.Item, error) {
	it := attestation.Item{TEE: strings.ToLower(e.tee), Evidence: e.text, ReportData: e.rawRuntime, InitData: e.initDigest}
	if !json.Valid(e.text) {
		return it, errors.New("the evidence is not JSON")
	}
	if len(e.rawRuntime) == 0 && e.structured == nil {
		return it, errors.New("it has no runtime data that the evidence is bound to: it could be a replay")
	}
	if e.structured != nil {
		text, err := kbs.Canonical(e.structured)
		if err != nil {
			return it, fmt.Errorf("reading the runtime data: %w", err)
		}
		if it.ReportData, err = digest(e.hash, text); err != nil {
			return it, err
		}
		if err := json.Unmarshal(text, &it.Runtime); err != nil {
			return it, fmt.Errorf("the runtime data is not a JSON object: %w", err)
		}
	}
	if e.initTOML != "" {
		_, sum, err := initdata.Digest([]byte(e.initTOML))
		if err != nil {
			return it, fmt.Errorf("reading the init data: %w", err)
		}
		doc, err := initdata.Parse([]byte(e.initTOML))
		if err != nil {
			return it, fmt.Errorf("reading the init data: %w", err)
		}
		it.InitData, it.InitClaims, it.InitTOML = sum, appraise.InitDataClaims(doc.Data), e.initTOML
	}
	return it, nil
}

// digest hashes by the name of an algorithm, in any case; "" means sha384.
func digest(algorithm string, data []byte) ([]byte, error) {
	switch strings.ToLower(algorithm) {
	case "", "sha384":
		sum := sha512.Sum384(data)
		return sum[:], nil
	case "sha256":
		sum := sha256.Sum256(data)
		return sum[:], nil
	case "sha512":
		sum := sha512.Sum512(data)
		return sum[:], nil
	}
	return nil, fmt.Errorf("hash algorithm %.32q is not known, want sha256, sha384 or sha512", algorithm)
}

// challenge answers with the JSON text that a TEE wants before evidence is made, or with nothing.
func (a *API) challenge(ctx context.Context, tee, params string) (string, error) {
	if tee == "" {
		return "", fmt.Errorf("%w: it has no tee", errRequest)
	}
	c, err := a.Attestation.Challenge(ctx, tee, json.RawMessage(params))
	if err != nil {
		return "", err
	}
	return c.Nonce, nil
}

// setPolicy stores an attestation policy for an administrator.
func (a *API) setPolicy(ctx context.Context, remote string, call adminauth.Call, id, encoded string) error {
	return a.change(ctx, remote, call, "attestation-policy", id, func(string) (string, error) {
		text, err := unbase64(encoded)
		if err != nil {
			return "", fmt.Errorf("%w: reading the policy text: %w", errRequest, err)
		}
		return "", a.Policies.Put(ctx, id, string(text))
	})
}

// register stores reference values for an administrator.
func (a *API) register(ctx context.Context, remote string, call adminauth.Call, message string) error {
	return a.change(ctx, remote, call, "reference-value", "", func(by string) (string, error) {
		names, err := a.References.Register(ctx, []byte(message), by)
		slices.Sort(names)
		return strings.Join(names, " "), err
	})
}

// change lets an administrator do something and records that it was tried and how it ended.
func (a *API) change(ctx context.Context, remote string, call adminauth.Call, event, subject string, do func(by string) (string, error)) error {
	id, err := decision.NewID(a.Now())
	if err != nil {
		return err
	}
	entry := audit.Entry{Event: event, RequestID: id, Remote: remote, Subject: subject, Decision: audit.Deny}
	by, err := a.Admins.Admit(ctx, call)
	if err != nil {
		entry.Reason = err.Error()
		return errors.Join(err, a.note(ctx, entry))
	}
	entry.Decision, entry.Reason = audit.Allow, "admitted "+by
	if err := a.note(ctx, entry); err != nil {
		return errors.New("the audit log cannot be written, so nothing is changed")
	}
	done, err := do(by)
	if done != "" {
		entry.Subject = done
	}
	entry.Reason = "done by " + by
	if err != nil {
		entry.Decision, entry.Reason = audit.Error, err.Error()
	}
	if aerr := a.note(ctx, entry); aerr != nil {
		a.Log.ErrorContext(ctx, "writing the audit log", "request", id, "error", aerr)
	}
	return err
}

// unbase64 takes URL-safe base64 with and without padding.
func unbase64(s string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
}
