// Package nvidia verifies evidence of NVIDIA GPUs (Hopper, Blackwell) and NVSwitches (LS10).
//
// Verify works in one of two ways. Locally (the default) it checks, for each device: the certificate chain up to the
// embedded device root, that the chain is that of the claimed architecture, the signature over the whole SPDM exchange,
// the nonce, and the firmware id of the report against that of the certificate. Its claims are upstream's: arch, uuid,
// measurements, config (attestation-service.md section 4.13). With Collateral set it also asks for the revocation status
// of every certificate and compares the measurements with NVIDIA's signed reference manifests (RIM); the outcome is
// claims of the names that NVIDIA's service gives, so that the same policies work. Whatever a policy can decide on is a
// claim and not an error: an expired or revoked certificate, a manifest that is not to be had, a measurement that
// differs. measres, secboot and dbgstat say yes only when nothing at all was left open.
//
// With Remote set NVIDIA's service (NRAS) does all this and Verify checks its two signed tokens.
//
// More is checked than upstream does: Blackwell and switches locally; the kind of request; that the chain has no
// certificate too many; revocation; manifests; for NRAS that both tokens carry our nonce and that the first vouches for
// the second; for protected PCIe that twelve different devices name each other.
//
// The uuid claim is the guest's word and says nothing about the device; ueid is the certificate's.
package nvidia

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/tee/nvgpu"
)

// Classes of results.
const (
	ClassGPU    = "gpu"
	ClassSwitch = "switch"
	ClassPPCIE  = "ppcie"
)

// Options is what the evidence is held against.
type Options struct {
	// ExpectedReportData: its first 32 bytes, padded with zeros, must be the nonce of every report.
	ExpectedReportData []byte
	// InitDataDigest must be nil: the evidence has no place for it.
	InitDataDigest []byte
	// Offline leaves the nonce unchecked, which is only for looking at saved evidence: it may then be a replay.
	Offline bool
	// Now is the time that certificates, revocation answers and tokens are checked at.
	Now time.Time
	// DeviceRoot and RIMRoot replace NVIDIA's embedded roots when not nil.
	DeviceRoot, RIMRoot *x509.Certificate
	// Collateral, when not nil, makes local verification compare measurements and ask for revocations.
	Collateral Collateral
	// Remote, when not nil, asks NRAS instead of verifying locally.
	Remote *Remote
}

// Result is the claims of one device, or of the topology.
type Result struct {
	Class  string
	Claims map[string]any
	// id is the same for two results exactly when they are of one device; empty when nothing tells.
	id string
}

// Verify checks evidence of one or more devices. All must be good.
func Verify(ctx context.Context, evidence json.RawMessage, o Options) ([]Result, error) {
	if len(o.ExpectedReportData) == 0 && !o.Offline {
		return nil, errors.New("no report data to bind the evidence to")
	}
	if o.InitDataDigest != nil {
		return nil, errors.New("init data was given, and NVIDIA evidence cannot be bound to any")
	}
	if o.Now.IsZero() {
		return nil, errors.New("no time to verify at")
	}
	if o.Remote != nil && o.Offline {
		return nil, errors.New("NRAS was asked for without report data: it answers only for a nonce")
	}
	devices, err := parseEvidence(evidence)
	if err != nil {
		return nil, err
	}
	v, err := newLocal(o)
	if err != nil {
		return nil, err
	}
	var out []Result
	for i, d := range devices {
		r := Result{Class: d.arch.class}
		if o.Remote != nil {
			r.Claims, err = o.Remote.attest(ctx, d, nonce(o.ExpectedReportData), o.Now)
			r.id, _ = r.Claims["ueid"].(string)
		} else {
			r.Claims, r.id, err = v.verify(ctx, d)
		}
		if err != nil {
			return nil, fmt.Errorf("device %d (%s): %w", i, d.arch.name, err)
		}
		out = append(out, r)
	}
	if isPPCIE(out) {
		out = append(out, Result{Class: ClassPPCIE, Claims: map[string]any{"switch_count": ppcieSwitches, "gpu_count": ppcieGPUs}})
	}
	return out, nil
}

func nonce(reportData []byte) (n [nvgpu.NonceSize]byte) {
	copy(n[:], reportData)
	return n
}
