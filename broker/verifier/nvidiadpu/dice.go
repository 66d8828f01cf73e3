package nvidiadpu

import (
	"bytes"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// oidTCBInfo is the DICE TcbInfo extension, under the identifier upstream looks for.
var oidTCBInfo = asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}

const maxLayers = 64

// checkChain checks root, DeviceID and Alias. The three are the whole chain: nothing else may stand between them.
func (o Options) checkChain(deviceID, alias *x509.Certificate) error {
	for _, link := range []struct {
		name          string
		child, parent *x509.Certificate
	}{{"device_id_cert", deviceID, o.Root}, {"alias_cert", alias, deviceID}} {
		if !bytes.Equal(link.child.RawIssuer, link.parent.RawSubject) {
			return fmt.Errorf("%s names the issuer %q, want %q", link.name, link.child.Issuer, link.parent.Subject)
		}
		if link.child.SignatureAlgorithm != x509.ECDSAWithSHA384 {
			return fmt.Errorf("%s is signed with %s, want %s", link.name, link.child.SignatureAlgorithm, x509.ECDSAWithSHA384)
		}
		if err := link.child.CheckSignatureFrom(link.parent); err != nil {
			return fmt.Errorf("%s is not signed by %q: %w", link.name, link.parent.Subject, err)
		}
		for _, oid := range link.child.UnhandledCriticalExtensions {
			if !oid.Equal(oidTCBInfo) {
				return fmt.Errorf("%s has the critical extension %s, which is unknown", link.name, oid)
			}
		}
		if err := inTime(link.name, link.child, o.Now); err != nil {
			return err
		}
	}
	if alias.IsCA {
		return errors.New("alias_cert is that of an authority")
	}
	if err := inTime("root", o.Root, o.Now); err != nil {
		return err
	}
	most := o.MaxAge
	if most == 0 {
		most = DefaultMaxAge
	}
	if age := o.Now.Sub(alias.NotBefore); age > most {
		return fmt.Errorf("alias_cert is %s old, at most %s is accepted", age.Round(time.Second), most)
	}
	return nil
}

func inTime(name string, cert *x509.Certificate, now time.Time) error {
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return fmt.Errorf("%s is valid from %s to %s, it is %s", name, cert.NotBefore.UTC().Format(time.RFC3339),
			cert.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

func deviceClaims(deviceID, alias *x509.Certificate) (map[string]any, error) {
	layers, err := firmware(deviceID)
	if err != nil {
		return nil, fmt.Errorf("reading TcbInfo of device_id_cert: %w", err)
	}
	h := sha512.New384()
	for _, digest := range layers {
		h.Write(digest)
	}
	class := deviceID.Subject.CommonName
	if class == "" {
		class = "unknown"
	}
	return map[string]any{
		"device_serial": deviceID.SerialNumber.Text(16), "device_class": class, "firmware_layers_count": len(layers),
		"accumulated_fwid": hex.EncodeToString(h.Sum(nil)), "alias_timestamp": alias.NotBefore.Unix(),
	}, nil
}

type fwid struct {
	Algorithm asn1.ObjectIdentifier
	Digest    []byte
}

// firmware returns the digests of the firmware layers; none when the certificate does not speak of firmware.
func firmware(cert *x509.Certificate) ([][]byte, error) {
	for _, e := range cert.Extensions {
		if !e.Id.Equal(oidTCBInfo) {
			continue
		}
		var members []asn1.RawValue
		if err := unmarshal(e.Value, &members, ""); err != nil {
			return nil, err
		}
		for _, m := range members {
			if m.Class == asn1.ClassContextSpecific && m.Tag == 6 {
				return layers(m)
			}
		}
		return nil, nil
	}
	return nil, nil
}

// layers reads fwids [6] IMPLICIT SEQUENCE OF FWID, or the same with a SEQUENCE inside, which upstream reads.
func layers(m asn1.RawValue) ([][]byte, error) {
	var list []fwid
	if err := unmarshal(m.FullBytes, &list, "tag:6"); err != nil {
		list = nil
		if inner := unmarshal(m.Bytes, &list, ""); inner != nil {
			return nil, fmt.Errorf("reading fwids: %w", errors.Join(err, inner))
		}
	}
	if len(list) > maxLayers {
		return nil, fmt.Errorf("there are %d fwids, at most %d are read", len(list), maxLayers)
	}
	out := make([][]byte, 0, len(list))
	for _, f := range list {
		out = append(out, f.Digest)
	}
	return out, nil
}

func unmarshal(der []byte, v any, params string) error {
	rest, err := asn1.UnmarshalWithParams(der, v, params)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes follow the value", len(rest))
	}
	return err
}
