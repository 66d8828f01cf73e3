package dryrun

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/kbs"
)

// Verifiers find the verifier of a TEE.
type Verifiers interface {
	Get(tee string) (verifier.Verifier, error)
}

// Binding says what evidence belongs to. The message of a guest says that itself, but for the TEE.
type Binding struct {
	TEE string
	// ReportData is what bare evidence must be bound to; nil leaves that open, which only verifiers for saved evidence allow.
	ReportData []byte
	// InitData is the document that bare evidence must be bound to; nil when there is none.
	InitData []byte
	// Hash is the algorithm of the report data of a guest's message; "" is the protocol's default.
	Hash string
}

const maxDevices = 64

// Verify verifies evidence and returns its devices. An error means that it is not genuine, or not bound as it must be.
func (s *Saved) Verify(ctx context.Context, v Verifiers, b Binding) ([]Device, error) {
	if b.TEE == "" {
		return nil, errors.New("what made the evidence does not stand in it: the tee has to be named")
	}
	switch s.Form {
	case FormEvidence:
		claims, digest, err := readInitData(b.InitData)
		if err != nil {
			return nil, err
		}
		return verify(ctx, v, b.TEE, verifier.Request{Evidence: s.Evidence, ReportData: b.ReportData, InitData: digest}, claims, nil)
	case FormGuest:
		return s.verifyGuest(ctx, v, b)
	}
	return nil, fmt.Errorf("saved %s is no evidence to verify", s.Form)
}

func readInitData(document []byte) (claims any, digest []byte, err error) {
	if document == nil {
		return nil, nil, nil
	}
	doc, err := initdata.Parse(document)
	if err == nil {
		_, digest, err = initdata.Digest(document)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading init-data: %w", err)
	}
	return appraise.InitDataClaims(doc.Data), digest, nil
}

func verify(ctx context.Context, v Verifiers, tee string, r verifier.Request, initClaims any, runtime map[string]any) ([]Device, error) {
	tee = verifier.Canonical(tee)
	one, err := v.Get(tee)
	if err != nil {
		return nil, err
	}
	results, err := one.Verify(ctx, r)
	if err != nil {
		return nil, err
	}
	var out []Device
	for _, res := range results {
		e := appraise.Evidence{TEE: tee, Class: res.Class, Claims: res.Claims, InitData: initClaims}
		if runtime != nil { // a nil map in an interface would not be null
			e.Runtime = runtime
		}
		out = append(out, Device{Evidence: e})
	}
	return out, nil
}

// verifyGuest verifies what a guest sends at the end of a handshake (kbs-protocol.md section 2.2), but for the session: that
// the nonce was one of the broker's, and fresh, is not known any more.
func (s *Saved) verifyGuest(ctx context.Context, v Verifiers, b Binding) ([]Device, error) {
	att := s.Guest
	var document []byte
	if att.InitData != nil {
		document = []byte(att.InitData.Body)
	}
	claims, digest, err := readInitData(document)
	if err != nil {
		return nil, err
	}
	if b.Hash == "" {
		b.Hash = kbs.DefaultHash
	}
	additional := att.TEEEvidence.Additional
	bound, err := kbs.ReportData(att.RuntimeData, &additional, b.Hash)
	if err != nil {
		return nil, fmt.Errorf("computing report data: %w", err)
	}
	out, err := verify(ctx, v, b.TEE, verifier.Request{Evidence: att.TEEEvidence.Primary, ReportData: bound, InitData: digest}, claims, map[string]any{
		"nonce": att.RuntimeData.Nonce, "tee-pubkey": att.RuntimeData.TEEPubKey, "additional-evidence": additional,
	})
	if err != nil || additional == "" {
		return out, err
	}
	var devices map[string]json.RawMessage
	if err := json.Unmarshal([]byte(additional), &devices); err != nil {
		return nil, fmt.Errorf("reading additional_evidence: %w", err)
	}
	if len(devices) > maxDevices {
		return nil, fmt.Errorf("additional_evidence has %d entries, at most %d are taken", len(devices), maxDevices)
	}
	if bound, err = kbs.ReportData(att.RuntimeData, nil, kbs.DefaultHash); err != nil {
		return nil, fmt.Errorf("computing report data: %w", err)
	}
	for _, tee := range slices.Sorted(maps.Keys(devices)) {
		more, err := verify(ctx, v, tee, verifier.Request{Evidence: devices[tee], ReportData: bound}, nil, map[string]any{
			"nonce": att.RuntimeData.Nonce, "tee-pubkey": att.RuntimeData.TEEPubKey,
		})
		if err != nil {
			return nil, fmt.Errorf("evidence of %.32q: %w", tee, err)
		}
		out = append(out, more...)
	}
	return out, nil
}
