package nvidia

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

// Extensions of the leaf that name the firmware its key belongs to: TCG DICE CompositeDeviceID on Hopper and LS10,
// DiceTcbInfo on Blackwell.
var (
	oidCompositeDeviceID = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}
	oidTCBInfo           = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1, 1}
	oidSHA384            = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}
)

const fwidSize = 48

// fwid is the digest of a firmware layer.
type fwid struct {
	Algorithm asn1.ObjectIdentifier
	Digest    []byte
}

// certificateFWID returns the firmware id of a leaf certificate; nil when it has none.
func certificateFWID(cert *x509.Certificate) ([]byte, error) {
	var out []byte
	for _, e := range cert.Extensions {
		var f fwid
		var err error
		switch {
		case e.Id.Equal(oidCompositeDeviceID):
			f, err = compositeFWID(e.Value)
		case e.Id.Equal(oidTCBInfo):
			f, err = tcbInfoFWID(e.Value)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the firmware id of the certificate: %w", err)
		}
		if !f.Algorithm.Equal(oidSHA384) || len(f.Digest) != fwidSize {
			return nil, fmt.Errorf("firmware id of the certificate is %d bytes of %s, want SHA-384", len(f.Digest), f.Algorithm)
		}
		if out != nil {
			return nil, errors.New("certificate has two firmware ids")
		}
		out = f.Digest
	}
	return out, nil
}

func compositeFWID(der []byte) (fwid, error) {
	var v struct {
		Version int
		Key     asn1.RawValue
		FWID    fwid
	}
	if err := unmarshal(der, &v, ""); err != nil {
		return fwid{}, err
	}
	return v.FWID, nil
}

// tcbInfoFWID returns the first of the firmware ids, which is that of the firmware that holds the key.
func tcbInfoFWID(der []byte) (fwid, error) {
	var members []asn1.RawValue
	if err := unmarshal(der, &members, ""); err != nil {
		return fwid{}, err
	}
	for _, m := range members {
		if m.Class != asn1.ClassContextSpecific || m.Tag != 6 {
			continue
		}
		var list []fwid
		if err := unmarshal(m.FullBytes, &list, "tag:6"); err != nil {
			return fwid{}, err
		}
		if len(list) > 0 {
			return list[0], nil
		}
	}
	return fwid{}, errors.New("DiceTcbInfo has no fwids")
}

func unmarshal(der []byte, v any, params string) error {
	rest, err := asn1.UnmarshalWithParams(der, v, params)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes follow the value", len(rest))
	}
	return err
}
