package verifier

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/verifier/azurevtpm"
	"github.com/cloister/cloister/broker/verifier/cca"
	"github.com/cloister/cloister/broker/verifier/csv"
	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/broker/verifier/hygondcu"
	"github.com/cloister/cloister/broker/verifier/nvidia"
	"github.com/cloister/cloister/broker/verifier/nvidiadpu"
	"github.com/cloister/cloister/broker/verifier/sample"
	"github.com/cloister/cloister/broker/verifier/se"
	"github.com/cloister/cloister/broker/verifier/sgx"
	"github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/broker/verifier/tdx"
	"github.com/cloister/cloister/broker/verifier/tpm"
	"github.com/cloister/cloister/wire/kbs"
)

// Classes of devices other than whole guests; those of NVIDIA's GPUs and switches are in package nvidia.
const (
	ClassDCU = "dcu"
	ClassDPU = "nvidia-dpu"
)

// Config is the configuration of all verifiers.
type Config struct {
	// Now is the clock of all of them; nil means time.Now.
	Now func() time.Time
	TPM tpm.Config
	// Collateral of AMD, Intel and NVIDIA; nil means only what evidence brings along.
	AMD    snp.Certificates
	Intel  dcap.Source
	NVIDIA nvidia.Collateral
	// NRAS asks NVIDIA's own service about GPUs instead of verifying them here.
	NRAS *nvidia.RemoteConfig
	// CCATrustAnchors and CCAReferenceValues are files of platforms that are known; without the first, CCA is off.
	CCATrustAnchors    string
	CCAReferenceValues string
	// SE is for IBM Secure Execution, which is off without a MeasurementKeyFile.
	SE se.Config
	// HygonCertificates is a folder of chips' certificates, <serial>/hsk_cek.cert, for evidence that brings none.
	HygonCertificates string
	// DPURoot is a PEM file with the certificate authority of NVIDIA's DPUs; without it they are refused.
	DPURoot   string
	DPUMaxAge time.Duration
	// Unbound accepts requests without report data, which may be replays, and Intel quotes without collateral, of which less is known.
	// It is for looking at saved evidence, never for a handshake.
	Unbound bool
	// Sample turns the verifiers on that verify nothing.
	Sample sample.Config
}

// Builtin is the list of verifiers.
func Builtin(c Config) []Entry {
	if c.Now == nil {
		c.Now = time.Now
	}
	return []Entry{
		{TEE: "tpm", New: func() (Verifier, error) { return c.tpm() }},
		{TEE: "snp", New: c.snp},
		{TEE: "tdx", New: c.tdx},
		{TEE: "sgx", New: c.sgx},
		{TEE: "az-snp-vtpm", New: c.azureSNP},
		{TEE: "az-tdx-vtpm", New: c.azureTDX},
		{TEE: "cca", New: c.cca},
		{TEE: "se", New: c.se},
		{TEE: "csv", New: c.csv},
		{TEE: "nvidia", New: c.nvidia},
		{TEE: "nvidia-dpu", New: c.dpu},
		{TEE: "hygondcu", New: c.dcu},
		{TEE: "sample", New: c.sample},
		{TEE: "sampledevice", New: c.sampleDevice},
	}
}

// unbound says that a request is not to be bound to report data.
func (c Config) unbound(r Request) bool { return c.Unbound && len(r.ReportData) == 0 }

// one makes a Verifier of a function that returns the claims of one device.
type one struct {
	class  string
	verify func(ctx context.Context, r Request) (map[string]any, error)
}

// Verify is part of Verifier.
func (o one) Verify(ctx context.Context, r Request) ([]Result, error) {
	claims, err := o.verify(ctx, r)
	if err != nil {
		return nil, err
	}
	return []Result{{Class: o.class, Claims: claims}}, nil
}

func (c Config) snp() (Verifier, error) {
	return one{ClassCPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return snp.Verify(ctx, r.Evidence, snp.Options{
			ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, Now: c.Now(), Certificates: c.AMD, Offline: c.unbound(r),
		})
	}}, nil
}

func (c Config) tdx() (Verifier, error) {
	return one{ClassCPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return tdx.Verify(ctx, r.Evidence, tdx.Options{
			ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, Now: c.Now(), Collateral: c.Intel,
			Offline: c.unbound(r), AllowNoCollateral: c.Unbound,
		})
	}}, nil
}

func (c Config) sgx() (Verifier, error) {
	return one{ClassCPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return sgx.Verify(ctx, r.Evidence, sgx.Options{
			ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, Now: c.Now(), Collateral: c.Intel,
			Offline: c.unbound(r), AllowNoCollateral: c.Unbound,
		})
	}}, nil
}

func (c Config) azure(r Request) azurevtpm.Options {
	return azurevtpm.Options{
		ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, Now: c.Now(), Certificates: c.AMD, Offline: c.unbound(r),
	}
}

func (c Config) azureSNP() (Verifier, error) {
	return one{ClassCPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return azurevtpm.VerifySNP(ctx, r.Evidence, c.azure(r))
	}}, nil
}

func (c Config) azureTDX() (Verifier, error) {
	quotes := azurevtpm.TDQuoteFunc(func(ctx context.Context, quote []byte, now time.Time) (map[string]any, []byte, error) {
		return tdx.VerifyTDQuote(ctx, quote, dcap.Options{Now: now, Collateral: c.Intel, AllowNoCollateral: c.Unbound})
	})
	return one{ClassCPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return azurevtpm.VerifyTDX(ctx, r.Evidence, c.azure(r), quotes)
	}}, nil
}

func (c Config) cca() (Verifier, error) {
	if c.CCATrustAnchors == "" {
		return nil, fmt.Errorf("%w: cca.trust_anchors names no platforms", ErrOff)
	}
	text, err := os.ReadFile(c.CCATrustAnchors)
	if err != nil {
		return nil, fmt.Errorf("reading CCA trust anchors: %w", err)
	}
	anchors, err := cca.ParseStore(text)
	if err != nil {
		return nil, fmt.Errorf("reading CCA trust anchors %s: %w", c.CCATrustAnchors, err)
	}
	var values *cca.ReferenceValues
	if c.CCAReferenceValues != "" {
		if text, err = os.ReadFile(c.CCAReferenceValues); err != nil {
			return nil, fmt.Errorf("reading CCA reference values: %w", err)
		}
		if values, err = cca.ParseReferenceValues(text); err != nil {
			return nil, fmt.Errorf("reading CCA reference values %s: %w", c.CCAReferenceValues, err)
		}
	}
	return one{ClassCPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return cca.Verify(ctx, r.Evidence, cca.Options{
			ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, TrustAnchors: anchors, ReferenceValues: values, Now: c.Now(),
			Offline: c.unbound(r),
		})
	}}, nil
}

// seVerifier speaks first: the guest's firmware measures only when asked with a request that is encrypted to it.
type seVerifier struct {
	*se.Verifier
	config Config
}

func (c Config) se() (Verifier, error) {
	if c.SE.MeasurementKeyFile == "" {
		return nil, fmt.Errorf("%w: se.measurement_key is empty", ErrOff)
	}
	v, err := se.New(c.SE)
	if err != nil {
		return nil, err
	}
	return seVerifier{v, c}, nil
}

// Challenge is part of Challenger.
func (v seVerifier) Challenge(ctx context.Context, params json.RawMessage) (*Challenge, error) {
	p, err := kbs.Request{ExtraParams: params}.Params()
	if err != nil {
		return nil, err
	}
	const hash = "sha512"
	out := &Challenge{Hash: hash}
	if len(p.SupportedHashAlgorithms) > 0 {
		can := func(name string) bool { return strings.EqualFold(name, hash) }
		if !slices.ContainsFunc(p.SupportedHashAlgorithms, can) {
			return nil, fmt.Errorf("the guest supports report data of %q, Secure Execution needs %s", p.SupportedHashAlgorithms, hash)
		}
		out.Params = &kbs.ChallengeParams{SelectedHashAlgorithm: hash}
	}
	nonce, err := v.Verifier.Challenge(ctx, params, v.config.Now())
	if err != nil {
		return nil, err
	}
	out.Nonce = string(nonce)
	return out, nil
}

// Verify is part of Verifier.
func (v seVerifier) Verify(ctx context.Context, r Request) ([]Result, error) {
	claims, err := v.Verifier.Verify(ctx, r.Evidence, se.Options{
		ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, Now: v.config.Now(), Offline: v.config.unbound(r),
	})
	if err != nil {
		return nil, err
	}
	return []Result{{Class: ClassCPU, Claims: claims}}, nil
}

// hygonFolder finds certificates as upstream's offline store keeps them.
type hygonFolder string

var serialNumber = regexp.MustCompile(`\A[A-Za-z0-9]{1,64}\z`)

// HSKCEK is part of csv.Endorsements.
func (f hygonFolder) HSKCEK(_ context.Context, serial string) ([]byte, error) {
	if f == "" {
		return nil, fmt.Errorf("%w: no folder of them is configured (hygon.certificates)", csv.ErrNoEndorsement)
	}
	if !serialNumber.MatchString(serial) {
		return nil, fmt.Errorf("chip serial number %.64q is not of letters and digits", serial)
	}
	raw, err := os.ReadFile(filepath.Join(string(f), serial, "hsk_cek.cert"))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", csv.ErrNoEndorsement, err)
	}
	return raw, nil
}

func (c Config) csv() (Verifier, error) {
	return one{ClassCPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return csv.Verify(ctx, r.Evidence, csv.Options{
			ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, Endorsements: hygonFolder(c.HygonCertificates), Now: c.Now(),
			Offline: c.unbound(r),
		})
	}}, nil
}

func (c Config) dcu() (Verifier, error) {
	return one{ClassDCU, func(ctx context.Context, r Request) (map[string]any, error) {
		return hygondcu.Verify(ctx, r.Evidence, hygondcu.Options{
			ExpectedReportData: r.ReportData, Endorsements: hygonFolder(c.HygonCertificates), Now: c.Now(),
			Offline: c.unbound(r),
		})
	}}, nil
}

// nvidiaVerifier gives one result for each device.
type nvidiaVerifier struct {
	Config
	options nvidia.Options
}

func (c Config) nvidia() (Verifier, error) {
	o := nvidia.Options{Collateral: c.NVIDIA}
	if c.NRAS != nil {
		var err error
		if o.Remote, err = nvidia.NewRemote(*c.NRAS); err != nil {
			return nil, err
		}
	}
	return nvidiaVerifier{c, o}, nil
}

// Verify is part of Verifier.
func (v nvidiaVerifier) Verify(ctx context.Context, r Request) ([]Result, error) {
	o := v.options
	o.ExpectedReportData, o.InitDataDigest, o.Now = r.ReportData, r.InitData, v.Now()
	o.Offline = v.unbound(r)
	found, err := nvidia.Verify(ctx, r.Evidence, o)
	if err != nil {
		return nil, err
	}
	out := make([]Result, len(found))
	for i, f := range found {
		out[i] = Result{Class: f.Class, Claims: f.Claims}
	}
	return out, nil
}

func (c Config) dpu() (Verifier, error) {
	if c.DPURoot == "" {
		return nil, fmt.Errorf("%w: nvidia.dpu_root is empty", ErrOff)
	}
	text, err := os.ReadFile(c.DPURoot)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate authority of DPUs: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("the certificate authority of DPUs: %s is no PEM certificate", c.DPURoot)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the certificate authority of DPUs %s: %w", c.DPURoot, err)
	}
	return one{ClassDPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return nvidiadpu.Verify(ctx, r.Evidence, nvidiadpu.Options{
			ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, Now: c.Now(), Root: root, MaxAge: c.DPUMaxAge,
			Offline: c.unbound(r),
		})
	}}, nil
}

func (c Config) sample() (Verifier, error) {
	if err := c.Sample.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOff, err)
	}
	return one{ClassCPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return sample.Verify(ctx, r.Evidence, sample.Options{
			Config:             c.Sample,
			ExpectedReportData: r.ReportData, InitDataDigest: r.InitData, Now: c.Now(), Offline: c.unbound(r),
		})
	}}, nil
}

func (c Config) sampleDevice() (Verifier, error) {
	if err := c.Sample.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOff, err)
	}
	return one{nvidia.ClassGPU, func(ctx context.Context, r Request) (map[string]any, error) {
		return sample.VerifyDevice(ctx, r.Evidence, sample.Options{Config: c.Sample, ExpectedReportData: r.ReportData, Now: c.Now(), Offline: c.unbound(r)})
	}}, nil
}
