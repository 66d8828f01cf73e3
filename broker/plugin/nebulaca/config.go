// Package nebulaca is the plugin that gives guests credentials of a Nebula overlay network (kbs-protocol.md section 6.2).
//
// It signs with Nebula's own library what upstream signs by running nebula-cert; the certificate authority is kept in the
// same files, so either broker goes on with the other's. Guests choose name and address themselves: the resource policy
// sees them in data.query and is the place to decide who may be called what; the authority's own limits hold as well.
package nebulaca

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/slackhq/nebula/cert"
)

const (
	defaultName     = "Cloister Nebula CA plugin"
	defaultDuration = 365 * 24 * time.Hour
	maxDuration     = 20 * 365 * 24 * time.Hour
	maxList         = 128
	maxName         = 253
)

// Config of the plugin.
type Config struct {
	// WorkDir keeps ca/ca.crt and ca/ca.key, which are made if both are absent.
	WorkDir string   `toml:"work_dir"`
	CA      CAConfig `toml:"ca_config"`
}

// CAConfig is about an authority that has to be made. Lists have commas between their members, as in nebula-cert.
type CAConfig struct {
	Name string `toml:"name"`
	// Curve is "25519", the default, or "P256".
	Curve string `toml:"curve"`
	// Duration is the life time, such as "8760h", the default.
	Duration string `toml:"duration"`
	// Groups, IPs and Subnets limit what the authority can sign; empty is no limit.
	Groups  string `toml:"groups"`
	IPs     string `toml:"ips"`
	Subnets string `toml:"subnets"`
	// Version is the version of the certificates: 1, the default, which every Nebula understands (IPv4 only), or 2.
	Version int `toml:"version"`
}

// Validate reports every fault.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.WorkDir) {
		errs = append(errs, fmt.Errorf("work_dir is %.128q, want an absolute path", c.WorkDir))
	}
	if _, err := c.CA.template(); err != nil {
		errs = append(errs, fmt.Errorf("ca_config: %w", err))
	}
	return errors.Join(errs...)
}

// template is the authority without times and key.
func (c CAConfig) template() (*cert.TBSCertificate, error) {
	t := &cert.TBSCertificate{Version: cert.Version1, Name: c.Name, IsCA: true}
	var errs []error
	if t.Name == "" {
		t.Name = defaultName
	}
	errs = append(errs, checkName("name", t.Name))
	switch c.Curve {
	case "", "25519", "X25519", "Curve25519", "CURVE25519":
		t.Curve = cert.Curve_CURVE25519
	case "P256":
		t.Curve = cert.Curve_P256
	default:
		errs = append(errs, fmt.Errorf("curve is %.16q, want 25519 or P256", c.Curve))
	}
	switch c.Version {
	case 0, 1:
	case 2:
		t.Version = cert.Version2
	default:
		errs = append(errs, fmt.Errorf("version is %d, want 1 or 2", c.Version))
	}
	if _, err := c.life(); err != nil {
		errs = append(errs, err)
	}
	var err error
	t.Groups, err = groups(c.Groups)
	errs = append(errs, err)
	t.Networks, err = prefixes("ips", c.IPs)
	errs = append(errs, err)
	t.UnsafeNetworks, err = prefixes("subnets", c.Subnets)
	errs = append(errs, err)
	return t, errors.Join(errs...)
}

func (c CAConfig) life() (time.Duration, error) {
	if c.Duration == "" {
		return defaultDuration, nil
	}
	return duration(c.Duration)
}

func duration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d > maxDuration {
		return 0, fmt.Errorf("duration is %.32q, want such as 720h, 1s to %s", text, maxDuration)
	}
	return d, nil
}

func checkName(what, name string) error {
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
		return fmt.Errorf("%s is %.64q, want 1 to %d plain characters", what, name, maxName)
	}
	return nil
}

func split(what, list string) ([]string, error) {
	var out []string
	if list == "" {
		return nil, nil
	}
	for _, s := range strings.Split(list, ",") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	if len(out) > maxList {
		return nil, fmt.Errorf("%s has %d members, at most %d are taken", what, len(out), maxList)
	}
	return out, nil
}

func groups(list string) ([]string, error) {
	out, err := split("groups", list)
	for _, g := range out {
		err = errors.Join(err, checkName("group", g))
	}
	return out, err
}

func prefixes(what, list string) ([]netip.Prefix, error) {
	texts, err := split(what, list)
	var out []netip.Prefix
	for _, text := range texts {
		p, bad := netip.ParsePrefix(text)
		if bad != nil {
			err = errors.Join(err, fmt.Errorf("%s has %.64q, want an address and network such as 10.1.2.3/16", what, text))
			continue
		}
		out = append(out, p)
	}
	return out, err
}
