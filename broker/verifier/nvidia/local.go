package nvidia

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/cloister/cloister/tee/nvgpu"
)

// local verifies devices without NVIDIA's service.
type local struct {
	Options
	deviceRoot, rimRoot *x509.Certificate
}

func newLocal(o Options) (*local, error) {
	v := &local{Options: o}
	var err error
	if v.deviceRoot, err = rootOr(o.DeviceRoot, deviceRootPEM); err != nil {
		return nil, err
	}
	v.rimRoot, err = rootOr(o.RIMRoot, rimRootPEM)
	return v, err
}

// subject is a device whose evidence is genuine.
type subject struct {
	device
	report *nvgpu.Report
	chain  chain
	// hwmodel is the common name of the device's own authority: chip, revision, engine.
	hwmodel string
	vbios   string
	driver  string
}

// verify returns the claims of a device, and what tells it from others: the key of its own authority, which is made with
// the chip.
func (v *local) verify(ctx context.Context, d device) (claims map[string]any, id string, err error) {
	s, err := v.genuine(d)
	if err != nil {
		return nil, "", err
	}
	if claims, err = s.claims(); err != nil {
		return nil, "", err
	}
	if v.Collateral != nil {
		if err := v.compare(ctx, s, claims); err != nil {
			return nil, "", err
		}
	}
	return claims, string(s.chain[1].RawSubjectPublicKeyInfo), nil
}

// genuine checks that a device of NVIDIA signed the evidence for this session.
func (v *local) genuine(d device) (*subject, error) {
	s := &subject{device: d}
	var err error
	if s.report, err = nvgpu.Parse(d.data); err != nil {
		return nil, fmt.Errorf("reading the report: %w", err)
	}
	if s.chain, err = parsePEM(d.chain); err != nil {
		return nil, fmt.Errorf("reading the certificates: %w", err)
	}
	if err := s.chain.verify(v.deviceRoot); err != nil {
		return nil, err
	}
	if !s.chain.current(v.Now) {
		return nil, fmt.Errorf("chain of %q is not valid at %s", s.chain.leaf().Subject, v.Now.UTC().Format(timeFormat))
	}
	if err := s.checkArchitecture(); err != nil {
		return nil, err
	}
	if err := s.checkSignature(); err != nil {
		return nil, err
	}
	if want := nonce(v.ExpectedReportData); !v.Offline && s.report.Nonce != want {
		return nil, fmt.Errorf("nonce of the report is %x, want the report data %x", s.report.Nonce, want)
	}
	if err := s.checkFWID(); err != nil {
		return nil, err
	}
	return s, s.versions()
}

// checkArchitecture holds the claimed architecture against the name of the device's own authority, which NVIDIA's
// provisioning signed.
func (s *subject) checkArchitecture() error {
	s.hwmodel = s.chain[1].Subject.CommonName
	for _, chip := range s.arch.chips {
		if strings.HasPrefix(s.hwmodel, chip) {
			return nil
		}
	}
	return fmt.Errorf("certificate is that of a %q, want %s", s.hwmodel, s.arch.name)
}

func (s *subject) checkSignature() error {
	key, err := s.chain.key()
	if err != nil {
		return err
	}
	digest := sha512.Sum384(s.report.Signed)
	if !verifyRaw(key, digest[:], s.report.Signature[:]) {
		return fmt.Errorf("signature of the report is not that of %q", s.chain.leaf().Subject)
	}
	return nil
}

// verifyRaw checks an ECDSA signature that is r and s, big-endian, in halves.
func verifyRaw(key *ecdsa.PublicKey, digest, signature []byte) bool {
	half := len(signature) / 2
	r, s := new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:])
	return ecdsa.Verify(key, digest, r, s)
}

// checkFWID compares the firmware id in the report with the certificate's. Reports of drivers before 550, and of
// switches, have none.
func (s *subject) checkFWID() error {
	got, ok := s.report.Field(nvgpu.FWID)
	if !ok {
		return nil
	}
	want, err := certificateFWID(s.chain.leaf())
	switch {
	case err != nil:
		return err
	case want == nil:
		return errors.New("certificate has no firmware id to compare the report's with")
	case !bytes.Equal(got, want):
		return fmt.Errorf("fwid of the report is %x, its certificate has %x", got, want)
	}
	return nil
}

// versions reads the fields that tell the device's software; without them nothing could be said of it.
func (s *subject) versions() error {
	var err error
	if s.vbios, err = s.report.VBIOSVersion(s.isSwitch()); err != nil {
		return fmt.Errorf("reading the report: %w", err)
	}
	s.driver = s.report.Text(nvgpu.DriverVersion)
	if s.driver == "" && !s.isSwitch() {
		return fmt.Errorf("reading the report: %s is missing", nvgpu.DriverVersion)
	}
	return nil
}

func (s *subject) isSwitch() bool { return s.arch.class == ClassSwitch }

// claims are those of upstream, and the wiring where the device tells it.
func (s *subject) claims() (map[string]any, error) {
	measurements := map[string]any{}
	for _, m := range s.report.Measurements {
		measurements[fmt.Sprint(m.Index)] = hex.EncodeToString(m.Value)
	}
	config, err := configClaims(s.report, s.vbios)
	if err != nil {
		return nil, err
	}
	claims := map[string]any{"arch": s.arch.name, "uuid": s.uuid, "measurements": measurements, "config": config}
	return claims, s.wiring(claims)
}
