package hcl

import (
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
)

const (
	attestationKeyID = "HCLAkPub"

	maxKeys        = 16
	minModulusBits = 2048
	maxModulusBits = 4096
	maxUserData    = 64
)

// RuntimeData is what the paravisor says of the VM.
type RuntimeData struct {
	// AK is the public part of the attestation key of the virtual TPM.
	AK *rsa.PublicKey
	// UserData is what the guest had put beside the last request, 64 bytes zero-padded; nil when there is none.
	UserData []byte
	// VMConfiguration is a JSON object such as {"secure-boot":true,...}.
	VMConfiguration json.RawMessage
}

type jwk struct {
	ID   string `json:"kid"`
	Type string `json:"kty"`
	N    string `json:"n"`
	E    string `json:"e"`
}

// ParseRuntimeData reads the runtime data of an HCL report.
func ParseRuntimeData(text []byte) (*RuntimeData, error) {
	var j struct {
		Keys            []jwk           `json:"keys"`
		VMConfiguration json.RawMessage `json:"vm-configuration"`
		UserData        string          `json:"user-data"`
	}
	if len(text) > maxReport {
		return nil, fmt.Errorf("parsing HCL runtime data: %d bytes, at most %d are read", len(text), maxReport)
	}
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, fmt.Errorf("parsing HCL runtime data: %w", err)
	}
	if len(j.Keys) > maxKeys {
		return nil, fmt.Errorf("parsing HCL runtime data: %d keys, at most %d are read", len(j.Keys), maxKeys)
	}
	d := &RuntimeData{VMConfiguration: j.VMConfiguration}
	for _, k := range j.Keys {
		if k.ID != attestationKeyID {
			continue
		}
		if d.AK != nil {
			return nil, fmt.Errorf("parsing HCL runtime data: key %s is there twice", attestationKeyID)
		}
		var err error
		if d.AK, err = k.rsa(); err != nil {
			return nil, fmt.Errorf("parsing HCL runtime data: key %s: %w", attestationKeyID, err)
		}
	}
	if d.AK == nil {
		return nil, fmt.Errorf("parsing HCL runtime data: it has no key %s", attestationKeyID)
	}
	if len(j.UserData) > 2*maxUserData {
		return nil, fmt.Errorf("parsing HCL runtime data: user-data has %d characters, expected at most %d", len(j.UserData), 2*maxUserData)
	}
	if j.UserData != "" {
		var err error
		if d.UserData, err = hex.DecodeString(j.UserData); err != nil {
			return nil, fmt.Errorf("parsing HCL runtime data: user-data: %w", err)
		}
	}
	return d, nil
}

func (k jwk) rsa() (*rsa.PublicKey, error) {
	if k.Type != "RSA" {
		return nil, fmt.Errorf("kty is %.16q, expected \"RSA\"", k.Type)
	}
	n, err := base64.RawURLEncoding.DecodeString(k.N)
	if err != nil {
		return nil, fmt.Errorf("n: %w", err)
	}
	e, err := base64.RawURLEncoding.DecodeString(k.E)
	if err != nil {
		return nil, fmt.Errorf("e: %w", err)
	}
	modulus := new(big.Int).SetBytes(n)
	if bits := modulus.BitLen(); bits < minModulusBits || bits > maxModulusBits {
		return nil, fmt.Errorf("n has %d bits, expected %d to %d", bits, minModulusBits, maxModulusBits)
	}
	exponent := new(big.Int).SetBytes(e)
	if exponent.Cmp(big.NewInt(3)) < 0 || exponent.BitLen() > 31 || exponent.Bit(0) == 0 {
		return nil, errors.New("e is not an odd number from 3 to 2^31-1")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}
