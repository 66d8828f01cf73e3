package nvidia

import (
	"crypto/x509"
	_ "embed" // for the certificates below
	"encoding/pem"
	"errors"
	"fmt"
)

// NVIDIA Device Identity CA, over GPUs and switches alike; SHA-256 of the DER form 102bf659…7b48.
//
//go:embed roots/device_root.pem
var deviceRootPEM []byte

// NVIDIA CoRIM signing Root CA, over reference manifests; SHA-256 of the DER form 12977b51…f5d1.
//
//go:embed roots/rim_root.pem
var rimRootPEM []byte

func embedded(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("embedded root is not PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading embedded root: %w", err)
	}
	return cert, nil
}

func rootOr(given *x509.Certificate, text []byte) (*x509.Certificate, error) {
	if given != nil {
		return given, nil
	}
	return embedded(text)
}
