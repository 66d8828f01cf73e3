package nvidia

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/cloister/cloister/tee/nvgpu"
	"github.com/cloister/cloister/tee/rim"
)

const timeFormat = time.RFC3339

// Values of x-nvidia-cert-status.
const (
	certValid   = "valid"
	certExpired = "expired"
	certRevoked = "revoked"
	certInvalid = "invalid"
)

// chainStatus is what is known of a chain.
type chainStatus struct {
	status  string
	expires any
	revocation
}

func (s chainStatus) good() bool { return s.status == certValid && s.revocation.status == ocspGood }

func (s chainStatus) claims() map[string]any {
	return map[string]any{
		"x-nvidia-cert-status": s.status, "x-nvidia-cert-ocsp-status": s.revocation.status,
		"x-nvidia-cert-expiration-date": s.expires, "x-nvidia-cert-revocation-reason": s.reason,
	}
}

// status tells the state of a verified chain; first is the first certificate whose revocation can be asked for.
func (v *local) status(ctx context.Context, c chain, first int) (chainStatus, error) {
	s := chainStatus{status: certValid, expires: c.expires().UTC().Format(timeFormat)}
	var err error
	if s.revocation, err = v.revocation(ctx, c, first); err != nil {
		return s, err
	}
	switch {
	case s.revocation.status == ocspRevoked:
		s.status = certRevoked
	case !c.current(v.Now):
		s.status = certExpired
		s.notes = append(s.notes, fmt.Sprintf("chain of %q is not valid at %s, the first certificate expires at %s", c.leaf().Subject,
			v.Now.UTC().Format(timeFormat), s.expires))
	}
	return s, nil
}

// manifest is the outcome for one reference manifest. Each member is true only after the ones before it.
type manifest struct {
	fetched   bool // it was there
	schema    bool // it reads
	signature bool // it is signed, by someone NVIDIA's root vouches for
	version   bool // it is for this device's software
	chain     chainStatus
	content   *rim.Content
	notes     []string
}

// good tells that the manifest may be relied on.
func (m *manifest) good() bool { return m.version && m.chain.good() }

// claims adds the outcome under names that begin with prefix.
func (m *manifest) claims(prefix string, claims map[string]any) {
	for name, v := range map[string]any{
		"fetched": m.fetched, "schema-validated": m.schema, "signature-verified": m.signature, "version-match": m.version,
		"measurements-available": m.version && m.content != nil, "cert-chain": m.chain.claims(),
	} {
		claims[prefix+name] = v
	}
}

// validID is the form of a manifest's name. Its parts come from the report: a genuine device's word, but still one that
// is put into an address or a file name.
var validID = regexp.MustCompile(`^[A-Z0-9]+(?:[._-][A-Z0-9]+)*$`)

const maxID = 128

// fetch gets a manifest and checks it.
func (v *local) fetch(ctx context.Context, s *subject, id, version string) (*manifest, error) {
	m := &manifest{chain: chainStatus{status: certInvalid, revocation: revocation{status: ocspUnknown}}}
	if err := v.fill(ctx, s, m, id, version); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("manifest %s: %w", id, ctx.Err())
		}
		m.notes = append(m.notes, fmt.Sprintf("manifest %.*s: %v", maxID, id, err))
	}
	return m, nil
}

func (v *local) fill(ctx context.Context, s *subject, m *manifest, id, version string) error {
	if len(id) > maxID || !validID.MatchString(id) {
		return errors.New("the report's fields do not make a name")
	}
	doc, err := v.Collateral.RIM(ctx, id)
	if err != nil {
		return err
	}
	m.fetched = true
	whole, err := rim.Parse(doc)
	if err != nil {
		return err
	}
	m.schema = true
	signer, err := parseDER(whole.Certificates)
	if err != nil {
		return err
	}
	if err := signer.verify(v.rimRoot); err != nil {
		return err
	}
	if m.chain, err = v.status(ctx, signer, 0); err != nil {
		return err
	}
	m.notes = append(m.notes, m.chain.notes...)
	content, err := signedContent(doc, signer)
	if err != nil {
		return err
	}
	m.signature = true
	if err := s.checkMeta(content.Meta, version); err != nil {
		return err
	}
	m.version, m.content = true, content
	return nil
}

// checkMeta checks that a manifest is for the device's software: a genuine manifest may have been put under another name.
func (s *subject) checkMeta(m rim.Meta, version string) error {
	edition := "GPU"
	if s.isSwitch() {
		edition = "SWITCH"
	}
	switch {
	case !strings.EqualFold(m.Version, version):
		return fmt.Errorf("it is for version %.32q, the device has %.32q", m.Version, version)
	case m.Edition != edition:
		return fmt.Errorf("it is for a %.32q, want %q", m.Edition, edition)
	case s.arch.product != "" && m.Product != s.arch.product:
		return fmt.Errorf("it is for a %.32q, the device is a %q", m.Product, s.arch.product)
	}
	return nil
}

// driverID is the name of the driver's manifest. Blackwell has names of its own, with the chip that the report tells.
func (s *subject) driverID() string {
	if s.arch.product != "" {
		return "NV_GPU_DRIVER_" + s.arch.product + "_" + strings.ToUpper(s.driver)
	}
	chip := s.report.Text(nvgpu.ChipInfo)
	if chip == "" {
		chip = "GB100"
	}
	return "NV_GPU_CC_DRIVER_" + strings.ToUpper(chip) + "_" + strings.ToUpper(s.driver)
}

// firmwareID is the name of the VBIOS's manifest. Switches do not tell their project and model; LS10 is one model.
func (s *subject) firmwareID() string {
	version := strings.ReplaceAll(s.vbios, ".", "")
	if s.isSwitch() {
		return strings.ToUpper("NV_SWITCH_BIOS_5612_0002_890_" + version)
	}
	return strings.ToUpper(fmt.Sprintf("NV_GPU_VBIOS_%s_%s_%s_%s", s.report.Text(nvgpu.Project), s.report.Text(nvgpu.ProjectSKU),
		s.report.Text(nvgpu.ChipSKU), version))
}
