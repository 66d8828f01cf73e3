package policy

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/wire/initdata"
)

// InitDataOptions are what a guest is told through its measured initdata.
type InitDataOptions struct {
	// Policy is the text of policy.rego.
	Policy string
	// KBSURL is the broker as the guest reaches it. Empty: the guest has no broker.
	KBSURL string
	// InsecureKBS allows plain HTTP to the broker: whoever is on the way can then
	// be the broker, and choose the secrets and the signature policy of the pod.
	InsecureKBS bool
	// KBSCertPEM is the certificate that the broker's TLS chain must end in.
	KBSCertPEM string
	// Registries are special ways to reach registries, named as in the guest.
	Registries []Registry
	// ImageSecurityPolicyURI, RegistryAuthURI name broker resources (kbs:///...)
	// with the signature policy and with registry credentials.
	ImageSecurityPolicyURI string
	RegistryAuthURI        string
	// ExtraRootsPEM are certificates trusted for registries.
	ExtraRootsPEM []string
}

// Registry configures one registry host.
type Registry struct {
	// Host is host or host:port as written in image references of the guest.
	Host string
	// Insecure uses plain HTTP. Digests and signatures are still checked.
	Insecure bool
}

type aaConfig struct {
	TokenConfigs struct {
		KBS struct {
			URL  string `toml:"url"`
			Cert string `toml:"cert,multiline,omitempty"`
		} `toml:"kbs"`
	} `toml:"token_configs"`
}

type cdhConfig struct {
	KBC   *kbcConfig  `toml:"kbc,omitempty"`
	Image imageConfig `toml:"image"`
}

type kbcConfig struct {
	Name string `toml:"name"`
	URL  string `toml:"url"`
	Cert string `toml:"kbs_cert,multiline,omitempty"`
}

type imageConfig struct {
	SecurityPolicyURI string          `toml:"image_security_policy_uri,omitempty"`
	RegistryAuthURI   string          `toml:"authenticated_registry_credentials_uri,omitempty"`
	ExtraRoots        []string        `toml:"extra_root_certificates,omitempty"`
	RegistryConfig    *registryConfig `toml:"registry_config,omitempty"`
}

type registryConfig struct {
	Search     []string        `toml:"unqualified-search-registries"`
	Registries []registryEntry `toml:"registry"`
}

type registryEntry struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
}

// InitData makes the initdata document of a guest. The digest algorithm is
// SHA-256, the one that fits a TPM register.
func InitData(o InitDataOptions) (*initdata.Document, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("making initdata: %w", err)
	}
	doc := &initdata.Document{Version: "0.1.0", Algorithm: "sha256", Data: map[string]string{"policy.rego": o.Policy}}
	cdh := cdhConfig{
		Image: imageConfig{
			SecurityPolicyURI: o.ImageSecurityPolicyURI,
			RegistryAuthURI:   o.RegistryAuthURI,
			ExtraRoots:        o.ExtraRootsPEM,
		},
	}
	if o.KBSURL != "" {
		var aa aaConfig
		aa.TokenConfigs.KBS.URL, aa.TokenConfigs.KBS.Cert = o.KBSURL, o.KBSCertPEM
		text, err := toml.Marshal(aa)
		if err != nil {
			return nil, fmt.Errorf("making initdata: aa.toml: %w", err)
		}
		doc.Data["aa.toml"] = string(text)
		cdh.KBC = &kbcConfig{Name: "cc_kbc", URL: o.KBSURL, Cert: o.KBSCertPEM}
	}
	if len(o.Registries) > 0 {
		rc := &registryConfig{Search: []string{"docker.io"}}
		for _, r := range o.Registries {
			rc.Registries = append(rc.Registries, registryEntry{Location: r.Host, Insecure: r.Insecure})
		}
		cdh.Image.RegistryConfig = rc
	}
	text, err := toml.Marshal(cdh)
	if err != nil {
		return nil, fmt.Errorf("making initdata: cdh.toml: %w", err)
	}
	doc.Data["cdh.toml"] = string(text)
	return doc, nil
}

func (o InitDataOptions) validate() error {
	var problems []error
	if strings.TrimSpace(o.Policy) == "" {
		problems = append(problems, errors.New("the policy is empty"))
	}
	if o.KBSURL != "" {
		u, err := url.Parse(o.KBSURL)
		if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil {
			problems = append(problems, fmt.Errorf("KBS URL %q is not an http(s) URL of a host", o.KBSURL))
		} else if u.Scheme == "http" && !o.InsecureKBS {
			problems = append(problems, fmt.Errorf("KBS URL %q is plain HTTP, expected https or the permission for an insecure broker", o.KBSURL))
		} else if u.Scheme == "https" && o.KBSCertPEM != "" && !certificate(o.KBSCertPEM) {
			problems = append(problems, errors.New("the KBS certificate is not a PEM certificate"))
		}
	} else if o.ImageSecurityPolicyURI != "" || o.RegistryAuthURI != "" {
		problems = append(problems, errors.New("a resource URI is set but no KBS URL to get it from"))
	}
	for _, x := range [][2]string{{"image security policy", o.ImageSecurityPolicyURI}, {"registry credentials", o.RegistryAuthURI}} {
		name, uri := x[0], x[1]
		if uri != "" && !strings.HasPrefix(uri, "kbs:///") {
			problems = append(problems, fmt.Errorf("%s URI %q does not start with kbs:///", name, uri))
		}
	}
	for i, c := range o.ExtraRootsPEM {
		if !certificate(c) {
			problems = append(problems, fmt.Errorf("extra root %d is not a PEM certificate", i))
		}
	}
	for _, r := range o.Registries {
		if r.Host == "" || strings.ContainsAny(r.Host, "/@ ") {
			problems = append(problems, fmt.Errorf("registry host %q is not host or host:port", r.Host))
		}
	}
	return errors.Join(problems...)
}

func certificate(text string) bool {
	b, _ := pem.Decode([]byte(text))
	return b != nil && b.Type == "CERTIFICATE"
}
