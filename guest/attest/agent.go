package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/wire/aa"
	"github.com/cloister/cloister/wire/kbs"
)

// TokenSource gives attestation tokens with the key they are bound to.
// *KBSClient is one.
type TokenSource interface {
	Token(ctx context.Context) (token string, key crypto.PrivateKey, err error)
}

// Agent is the Attestation Agent of the guest.
type Agent struct {
	// Attester is nil on a platform without attestation; every request for
	// evidence then fails with Reason.
	Attester Attester
	// Reason says why there is no attester.
	Reason error
	// Tokens is nil when no broker is configured.
	Tokens TokenSource
	// EventLog is nil when runtime events are not recorded.
	EventLog *EventLog
	// EventsEnabled tells a platform without registers from a log that is off.
	EventsEnabled bool
	Log           *slog.Logger
}

// NewAgent opens what an agent needs. logDir and register configure the event
// log; it is opened when events is true and the platform has registers.
func NewAgent(ctx context.Context, a Attester, tokens TokenSource, events bool, logDir string, register *uint64, log *slog.Logger) (*Agent, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g := &Agent{Attester: a, Tokens: tokens, EventsEnabled: events, Log: log}
	regs, ok := a.(Registers)
	if !events || !ok {
		return g, nil
	}
	var err error
	g.EventLog, err = OpenEventLog(ctx, logDir, regs, register)
	return g, err
}

// TEE names the platform, or says why there is none.
func (g *Agent) TEE() (string, error) {
	if g.Attester == nil {
		return "", g.absent()
	}
	return g.Attester.TEE(), nil
}

func (g *Agent) absent() error {
	if g.Reason != nil {
		return fmt.Errorf("this guest cannot attest: %w", g.Reason)
	}
	return errors.New("this guest cannot attest")
}

// Evidence collects evidence over reportData.
func (g *Agent) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if g.Attester == nil {
		return nil, g.absent()
	}
	return g.Attester.Evidence(ctx, reportData)
}

// Token returns the answer for a token type: for "kbs", JSON with the token and
// the private key it is bound to.
func (g *Agent) Token(ctx context.Context, tokenType string) ([]byte, error) {
	if tokenType != "kbs" {
		return nil, fmt.Errorf("token type is %q, expected kbs", tokenType)
	}
	if g.Tokens == nil {
		return nil, errors.New("no key broker is configured (token_configs.kbs)")
	}
	token, key, err := g.Tokens.Token(ctx)
	if err != nil {
		return nil, err
	}
	text, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	return json.Marshal(struct {
		Token   string `json:"token"`
		KeyPair string `json:"tee_keypair"`
	}{token, text})
}

// keyPEM writes a key as upstream does: EC in PKCS#8, RSA in PKCS#1.
func keyPEM(key crypto.PrivateKey) (string, error) {
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return "", fmt.Errorf("writing the TEE key: %w", err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
	case *rsa.PrivateKey:
		return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})), nil
	default:
		return "", fmt.Errorf("writing the TEE key: type %T has no PEM form", key)
	}
}

// ErrEventsOff means that runtime events are not recorded by configuration.
var ErrEventsOff = errors.New("the event log is not enabled (eventlog_config.enable_eventlog)")

// Domain is that of the events of the guest itself.
const Domain = "github.com/confidential-containers"

// ErrReserved means that a container has named a domain of the guest.
var ErrReserved = errors.New("the event domain is reserved for the guest")

// reserved says whether a domain is for the guest's own events: its name, in any case, and all below it.
func reserved(domain string) bool {
	d := strings.ToLower(domain)
	for _, own := range []string{Domain, "github.com/cloister"} {
		if d == own || strings.HasPrefix(d, own+"/") {
			return true
		}
	}
	return false
}

// MeasureForContainer is Measure for an event that a process of the pod reports. It cannot speak in the guest's name.
func (g *Agent) MeasureForContainer(ctx context.Context, domain, operation, content string) error {
	if reserved(domain) {
		return fmt.Errorf("measuring a runtime event: domain %s: %w", domain, ErrReserved)
	}
	return g.measure(domain, operation, content, func(e eventlog.AAEL) error { return g.EventLog.ExtendForContainer(ctx, e) })
}

// Measure records a runtime event of the guest. It returns ErrEventsOff or ErrNoRegisters
// where that is the answer.
func (g *Agent) Measure(ctx context.Context, domain, operation, content string, register *uint64) error {
	return g.measure(domain, operation, content, func(e eventlog.AAEL) error { return g.EventLog.Extend(ctx, e, register) })
}

func (g *Agent) measure(domain, operation, content string, extend func(eventlog.AAEL) error) error {
	if !g.EventsEnabled {
		return ErrEventsOff
	}
	if g.EventLog == nil {
		return ErrNoRegisters
	}
	event, err := eventlog.NewAAEL(domain, operation, content)
	if err != nil {
		return fmt.Errorf("measuring a runtime event: %w", err)
	}
	return extend(event)
}

// Register adds the agent's ttrpc service to a server.
func (g *Agent) Register(s *ttrpc.Server) { aa.RegisterAttestationAgentServiceService(s, service{g}) }

// service is the ttrpc face of an Agent. Causes go to the log; a caller gets
// the brief text, and the broker's own words when it was the broker who refused.
type service struct{ g *Agent }

func (s service) fail(brief string, err error) error {
	s.g.Log.Warn("attestation agent: "+brief, "error", err)
	text := "[ERROR:attestation-agent] " + brief
	var info *kbs.ErrorInformation
	if errors.As(err, &info) {
		text += ": " + info.Error()
	}
	return status.Error(codes.Internal, text)
}

func (s service) GetEvidence(ctx context.Context, r *aa.GetEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	e, err := s.g.Evidence(ctx, r.GetRuntimeData())
	if err != nil {
		return nil, s.fail("AA-KBC get evidence failed", err)
	}
	return &aa.GetEvidenceResponse{Evidence: e}, nil
}

// GetAdditionalEvidence answers empty: there are no attested devices.
func (s service) GetAdditionalEvidence(context.Context, *aa.GetAdditionalEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	return &aa.GetEvidenceResponse{}, nil
}

func (s service) GetToken(ctx context.Context, r *aa.GetTokenRequest) (*aa.GetTokenResponse, error) {
	t, err := s.g.Token(ctx, r.GetTokenType())
	if err != nil {
		return nil, s.fail("AA-KBC get token failed", err)
	}
	return &aa.GetTokenResponse{Token: t}, nil
}

func (s service) ExtendRuntimeMeasurement(ctx context.Context, r *aa.ExtendRuntimeMeasurementRequest) (*aa.ExtendRuntimeMeasurementResponse, error) {
	err := s.g.Measure(ctx, r.GetDomain(), r.GetOperation(), r.GetContent(), r.RegisterIndex)
	switch {
	case errors.Is(err, ErrEventsOff):
		return &aa.ExtendRuntimeMeasurementResponse{Result: aa.RuntimeMeasurementResult_NOT_ENABLED}, nil
	case errors.Is(err, ErrNoRegisters):
		return &aa.ExtendRuntimeMeasurementResponse{Result: aa.RuntimeMeasurementResult_NOT_SUPPORTED}, nil
	case err != nil:
		return nil, s.fail("AA extend runtime measurement failed", err)
	}
	return &aa.ExtendRuntimeMeasurementResponse{Result: aa.RuntimeMeasurementResult_OK}, nil
}

// BindInitData is not served over ttrpc, here as upstream: the initdata is
// bound once, before anything of it is used, and a second time would spoil it.
func (s service) BindInitData(context.Context, *aa.BindInitDataRequest) (*aa.BindInitDataResponse, error) {
	return nil, status.Error(codes.NotFound, "/attestation_agent.AttestationAgentService/BindInitData is not supported")
}

func (s service) GetTeeType(context.Context, *aa.GetTeeTypeRequest) (*aa.GetTeeTypeResponse, error) {
	tee, err := s.g.TEE()
	if err != nil {
		return nil, s.fail("AA-KBC get tee type failed", err)
	}
	return &aa.GetTeeTypeResponse{Tee: tee}, nil
}

func (s service) GetAdditionalTees(context.Context, *aa.GetAdditionalTeesRequest) (*aa.GetAdditionalTeesResponse, error) {
	return &aa.GetAdditionalTeesResponse{}, nil
}
