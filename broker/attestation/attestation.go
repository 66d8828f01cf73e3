// Package attestation is the attestation service: it verifies evidence, appraises it and signs the verdict.
//
// The key broker uses it for guests that shake hands with it; the attestation API (broker/asapi) offers it to key brokers
// elsewhere. It knows nothing of either.
package attestation

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/decision"
	"github.com/cloister/cloister/broker/span"
	"github.com/cloister/cloister/broker/verifier"
)

// Item is one piece of evidence with what it must be bound to.
type Item struct {
	TEE      string
	Evidence json.RawMessage
	// ReportData is the digest the evidence must carry; nil when the caller binds it to nothing, which only some verifiers allow.
	ReportData []byte
	// Runtime is what the report data is a digest of, for the token; nil when unknown.
	Runtime map[string]any
	// InitData is the digest of the init data, nil when there is none; InitClaims is what the init data says, for the token.
	InitData   []byte
	InitClaims any
	// InitTOML is the init data as it was sent, "" when only its digest is known. A service elsewhere reads the claims itself.
	InitTOML string
	// Challenge is what the verifier of the TEE left at the challenge.
	Challenge json.RawMessage
}

// Verdict is the outcome for one guest.
type Verdict struct {
	// Token is the signed EAR.
	Token string
	// Record has the grounds. Its Kind, Decision and Time are set; it is not stored yet.
	Record decision.Record
}

type verifiers interface {
	Get(tee string) (verifier.Verifier, error)
}

type appraiser interface {
	Appraise(ctx context.Context, policy string, evidence []appraise.Evidence) ([]appraise.Appraisal, error)
}

type issuer interface {
	Issue(id string, submods map[string]any) (string, error)
}

// Service is an attestation service.
type Service struct {
	Verifiers verifiers
	Appraiser appraiser
	Tokens    issuer
	Now       func() time.Time
}

// Evaluate verifies all items, appraises their claims by a policy and signs the result. The id becomes that of the token and of
// the record. An error means that some evidence is not genuine or not bound as it must be; a bad appraisal is a verdict.
func (s *Service) Evaluate(ctx context.Context, id, policy string, items []Item) (*Verdict, error) {
	if len(items) == 0 {
		return nil, errors.New("there is no evidence to verify")
	}
	var evidence []appraise.Evidence
	for _, it := range items {
		it.TEE = verifier.Canonical(it.TEE)
		v, err := s.Verifiers.Get(it.TEE)
		if err != nil {
			return nil, err
		}
		verifying, end := span.Start(ctx, span.Verify, span.TEE(it.TEE))
		results, err := v.Verify(verifying, verifier.Request{
			Evidence: it.Evidence, ReportData: it.ReportData, InitData: it.InitData, Challenge: it.Challenge,
		})
		end(err)
		if err != nil {
			return nil, err
		}
		for _, res := range results {
			e := appraise.Evidence{TEE: it.TEE, Class: res.Class, Claims: res.Claims, InitData: it.InitClaims}
			if it.Runtime != nil { // a nil map in an interface would not be null
				e.Runtime = it.Runtime
			}
			evidence = append(evidence, e)
		}
	}
	appraising, end := span.Start(ctx, span.Appraise, span.Count(len(evidence)))
	appraisals, err := s.Appraiser.Appraise(appraising, policy, evidence)
	end(err)
	if err != nil {
		return nil, err
	}
	rec := decision.Record{ID: id, Time: s.Now().UTC(), Kind: decision.KindAttestation, Decision: audit.Allow, TEE: items[0].TEE}
	submods := map[string]any{}
	for i, a := range appraisals {
		submods[a.Name] = a.Submod()
		raw, err := KeptEvidence(a.Annotated)
		if err != nil {
			return nil, err
		}
		rec.Parts = append(rec.Parts, decision.Part{
			Name: a.Name, TEE: evidence[i].TEE, Status: a.Status, Policy: a.PolicyID, Vector: a.Vector, Findings: a.Findings, Evidence: raw,
		})
	}
	token, err := s.Tokens.Issue(id, submods)
	if err != nil {
		return nil, err
	}
	return &Verdict{Token: token, Record: rec}, nil
}

// Challenge asks the verifier of a TEE what it has to say before there is evidence. Most have nothing: reply is nil.
func (s *Service) Challenge(ctx context.Context, tee string, params json.RawMessage) (*verifier.Challenge, error) {
	v, err := s.Verifiers.Get(tee)
	if err != nil {
		return nil, err
	}
	c, ok := v.(verifier.Challenger)
	if !ok {
		return &verifier.Challenge{}, nil
	}
	return c.Challenge(ctx, params)
}

// withheld are the members of the init data's claims that records keep by digest only. A policy lists the environment of
// every container, and with it what stands in a Secret; who reads records or the store must not learn it.
var withheld = []string{"policy.rego", "agent_policy_claims"}

// KeptEvidence is the claims as records keep them. What a guest can make as long as it likes is left out when it is long:
// records must not fill the disk.
func KeptEvidence(annotated map[string]any) (json.RawMessage, error) {
	const most = 64 << 10
	kept := map[string]any{}
	for name, v := range annotated {
		if name == "init_data_claims" {
			v = withoutPolicy(v)
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encoding claims: %w", err)
		}
		if part, ok := v.(map[string]any); ok && len(raw) > most {
			short := map[string]any{}
			for k, inner := range part {
				if text, ok := inner.(string); ok && len(text) <= 1024 {
					short[k] = inner
				}
			}
			short["cloister.shortened"] = true
			v = short
			if raw, err = json.Marshal(v); err != nil {
				return nil, fmt.Errorf("encoding claims: %w", err)
			}
		}
		if len(raw) > most {
			v = "left out: it is long"
		}
		kept[name] = v
	}
	return json.Marshal(kept)
}

// withoutPolicy replaces what is withheld by its digest: that of a text is over its bytes, that of other claims over their JSON.
func withoutPolicy(claims any) any {
	m, ok := claims.(map[string]any)
	if !ok {
		return claims
	}
	m = maps.Clone(m)
	for _, name := range withheld {
		v, ok := m[name]
		if !ok {
			continue
		}
		text, ok := v.(string)
		if !ok {
			raw, err := json.Marshal(v)
			if err != nil {
				m[name] = "left out"
				continue
			}
			text = string(raw)
		}
		m[name] = fmt.Sprintf("left out: sha256:%x", sha256.Sum256([]byte(text)))
	}
	return m
}
