package collateral

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/cloister/cloister/broker/loopback"
)

// Config is the part of the broker's configuration about collateral.
type Config struct {
	// OfflineOnly asks no server: collateral comes with the evidence, out of bundles, or from what was imported.
	OfflineOnly bool `toml:"offline_only"`
	// CacheDir is the folder of the cache; empty keeps it in memory only. The broker fills in <data_dir>/collateral.
	CacheDir string `toml:"cache_dir"`
	// Bundles are files and folders to look into before any server: bundles of `cloister collateral fetch`, files of Intel's PCS client
	// tool, offline stores of VCEKs.
	Bundles []string `toml:"bundles"`

	KDSURL  string `toml:"kds_url"`  // AMD's key distribution service
	PCSURL  string `toml:"pcs_url"`  // Intel's provisioning certification service
	PCCSURL string `toml:"pccs_url"` // a caching service of one's own, asked before Intel's; empty for none
	// PCCSCertificates is a PEM file to trust instead of the system's certificates for the PCCS, which often has one of its own.
	PCCSCertificates string `toml:"pccs_certificates"`
	IntelRootCRLURL  string `toml:"intel_root_crl_url"`
	// TCBUpdate is which TCB levels of Intel's count: "early", published at once, or "standard", months later.
	TCBUpdate     string `toml:"tcb_update"`
	NVIDIARIMURL  string `toml:"nvidia_rim_url"`
	NVIDIAOCSPURL string `toml:"nvidia_ocsp_url"`

	TimeoutSeconds int `toml:"timeout_seconds"` // of one request
	// MaxStaleHours is how long past its end TCB info and QE identity are still given to verifiers in an outage; they report it as
	// collateral_expiration_status, and the policy decides. Revocation lists and certificates never are.
	MaxStaleHours int `toml:"max_stale_hours"`
	MaxEntries    int `toml:"max_entries"`
	MaxMiB        int `toml:"max_mib"`
}

// DefaultConfig asks the vendors' own services.
func DefaultConfig() Config {
	return Config{
		Bundles:         []string{},
		KDSURL:          "https://kdsintf.amd.com",
		PCSURL:          "https://api.trustedservices.intel.com",
		IntelRootCRLURL: "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
		TCBUpdate:       "early",
		NVIDIARIMURL:    "https://rim.attestation.nvidia.com/v1/rim",
		NVIDIAOCSPURL:   "https://ocsp.ndis.nvidia.com",
		TimeoutSeconds:  15,
		MaxStaleHours:   24,
		MaxEntries:      4096,
		MaxMiB:          64,
	}
}

// Validate reports every fault at once.
func (c Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for _, u := range []struct {
		key, value string
		optional   bool
	}{
		{"kds_url", c.KDSURL, false}, {"pcs_url", c.PCSURL, false}, {"pccs_url", c.PCCSURL, true},
		{"intel_root_crl_url", c.IntelRootCRLURL, false}, {"nvidia_rim_url", c.NVIDIARIMURL, false}, {"nvidia_ocsp_url", c.NVIDIAOCSPURL, false},
	} {
		if u.value == "" && (u.optional || c.OfflineOnly) {
			continue
		}
		if err := CheckURL(u.value); err != nil {
			fault("collateral.%s: %w", u.key, err)
		}
	}
	if c.PCCSCertificates != "" && c.PCCSURL == "" {
		fault("collateral.pccs_certificates is set without collateral.pccs_url")
	}
	if c.TCBUpdate != "early" && c.TCBUpdate != "standard" {
		fault("collateral.tcb_update is %.32q, want early or standard", c.TCBUpdate)
	}
	for i, b := range c.Bundles {
		if b == "" {
			fault("collateral.bundles[%d] is empty", i)
		}
	}
	for _, n := range []struct {
		key         string
		v, min, max int
	}{
		{"timeout_seconds", c.TimeoutSeconds, 1, 120},
		{"max_stale_hours", c.MaxStaleHours, 0, 24 * 90},
		{"max_entries", c.MaxEntries, 16, 1_000_000},
		{"max_mib", c.MaxMiB, 16, 64 << 10},
	} {
		if n.v < n.min || n.v > n.max {
			fault("collateral.%s is %d, want %d to %d", n.key, n.v, n.min, n.max)
		}
	}
	return errors.Join(faults...)
}

// Options are the bounds of a cache with this configuration.
func (c Config) Options() Options {
	return Options{
		Dir: c.CacheDir, MaxEntries: c.MaxEntries, MaxBytes: int64(c.MaxMiB) << 20, Offline: c.OfflineOnly,
		MaxStale: time.Duration(c.MaxStaleHours) * time.Hour,
		// Two sources may be slow before the third answers.
		Timeout: 3 * time.Duration(c.TimeoutSeconds) * time.Second,
	}
}

// CheckURL refuses addresses of servers other than https, or http to this machine, and what does not belong into a base address.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("got an address that cannot be read, want https://host[:port][/path]")
	case u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("got %q, want https://host[:port][/path]", u.Redacted())
	case u.Scheme == "https", u.Scheme == "http" && loopback.Is(u.Hostname()):
		return nil
	}
	return fmt.Errorf("got %q, want https (http only to this machine)", text)
}
