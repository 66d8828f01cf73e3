// Package attest proves what the guest is. It collects evidence from the
// platform (Attester), exchanges it for tokens and secrets with a key broker
// (KBSClient, protocol version 0.4.0), and serves the Attestation Agent API to
// others in the guest (Agent), including the runtime event log.
//
// What runs here is measured and trusted; what it talks to is not, except for a
// broker authenticated by the configured root certificates. There is no sample
// attester: a platform without evidence is an error (see Detect).
package attest

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/cloister/cloister/wire/kbs"
)

// Attester collects evidence of one platform.
type Attester interface {
	// TEE is the name of the platform in the KBS protocol, such as "tpm".
	TEE() string
	// Evidence returns the evidence JSON over reportData.
	Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error)
}

// Enroller is an attester whose signing key is endorsed during the handshake:
// the broker encrypts a secret to a certified key, and only the device that
// also holds the signing key can return it.
type Enroller interface {
	Attester
	EnrolParams(ctx context.Context) (*kbs.TPMEnrol, error)
	ActivateCredential(ctx context.Context, c *kbs.TPMCredential) ([]byte, error)
	EvidenceWithCredential(ctx context.Context, reportData, credential []byte) (json.RawMessage, error)
}

// ErrNoRegisters means that the platform has no runtime measurement registers.
var ErrNoRegisters = errors.New("the platform does not support runtime measurement")

// Registers is an attester with runtime measurement registers.
type Registers interface {
	// RegisterHash is the TCG algorithm number of the register bank.
	RegisterHash() uint16
	// DefaultRegister is the register used when a caller names none.
	DefaultRegister() uint64
	// LogIndex maps a register to the index its log records carry.
	LogIndex(register uint64) (uint32, error)
	ReadRegister(ctx context.Context, register uint64) ([]byte, error)
	ExtendRegister(ctx context.Context, register uint64, digest []byte) error
}
