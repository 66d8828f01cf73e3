// Package microsoft asks Azure Key Vault, with tokens of Microsoft Entra ID.
//
// Where tokens come from is said in the configuration and nowhere else: nothing is taken from the environment.
package microsoft

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cloister/cloister/broker/cloud"
)

// Where tokens come from.
const (
	// FromSecret is an application with a client secret in a file.
	FromSecret = "client-secret"
	// FromWorkload is an application with a federated credential: a token in a file, such as that of a Kubernetes service account.
	FromWorkload = "workload-identity"
	// FromManaged asks the metadata service of an Azure VM for a token of its managed identity.
	FromManaged = "managed-identity"
)

// Config says where a vault is and who asks.
type Config struct {
	// VaultURL is https://NAME.vault.azure.net or that of a managed HSM.
	VaultURL    string `toml:"vault_url"`
	Credentials string `toml:"credentials"`

	// TenantID and ClientID name the application; with FromManaged, ClientID may be given to choose among identities.
	TenantID string `toml:"tenant_id"`
	ClientID string `toml:"client_id"`
	// ClientSecretFile is for FromSecret, FederatedTokenFile for FromWorkload.
	ClientSecretFile   string `toml:"client_secret_file"`
	FederatedTokenFile string `toml:"federated_token_file"`
	// Authority is where tokens are asked for; default https://login.microsoftonline.com.
	Authority string `toml:"authority"`
	// MetadataURL (default http://169.254.169.254) is for FromManaged.
	MetadataURL string `toml:"metadata_url"`
	// Audience is whom tokens are for; the default follows from the host of VaultURL.
	Audience string `toml:"audience"`

	cloud.Bounds
}

const (
	authority    = "https://login.microsoftonline.com"
	metadataURL  = "http://169.254.169.254"
	metadataHost = "169.254.169.254"
)

// audiences are the clouds there are. A token for all vaults must not go to a host that is none.
var audiences = []string{
	"vault.azure.net", "managedhsm.azure.net", "vault.azure.cn", "managedhsm.azure.cn",
	"vault.usgovcloudapi.net", "managedhsm.usgovcloudapi.net",
}

var (
	id     = regexp.MustCompile(`\A[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\z`)
	tenant = regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9.-]{0,253}\z`)
)

// WithDefaults fills in what is not given.
func (c Config) WithDefaults() Config {
	if c.Authority == "" {
		c.Authority = authority
	}
	if c.MetadataURL == "" {
		c.MetadataURL = metadataURL
	}
	if u, err := url.Parse(c.VaultURL); err == nil && c.Audience == "" {
		for _, a := range audiences {
			if strings.HasSuffix(strings.ToLower(u.Hostname()), "."+a) {
				c.Audience = "https://" + a
			}
		}
	}
	return c
}

// Validate reports every fault.
func (c Config) Validate() error {
	c = c.WithDefaults()
	errs := []error{c.Bounds.Validate(), cloud.CheckURL("vault_url", c.VaultURL)}
	if u, err := url.Parse(c.VaultURL); err == nil && u.Path != "" && u.Path != "/" {
		errs = append(errs, errors.New("vault_url: want https://HOST without a path"))
	}
	if c.Audience == "" {
		errs = append(errs, errors.New("vault_url is of no cloud that is known, so audience has to be given"))
	} else {
		errs = append(errs, cloud.CheckURL("audience", c.Audience))
	}
	app := func() {
		if !tenant.MatchString(c.TenantID) {
			errs = append(errs, fmt.Errorf("tenant_id is %.64q, want an id or a domain", c.TenantID))
		}
		if !id.MatchString(c.ClientID) {
			errs = append(errs, fmt.Errorf("client_id is %.64q, want one like 00000000-0000-0000-0000-000000000000", c.ClientID))
		}
		errs = append(errs, cloud.CheckURL("authority", c.Authority))
	}
	switch c.Credentials {
	case FromSecret:
		app()
		if !filepath.IsAbs(c.ClientSecretFile) {
			errs = append(errs, errors.New("client_secret_file: want an absolute path"))
		}
	case FromWorkload:
		app()
		if !filepath.IsAbs(c.FederatedTokenFile) {
			errs = append(errs, errors.New("federated_token_file: want an absolute path"))
		}
	case FromManaged:
		if c.ClientID != "" && !id.MatchString(c.ClientID) {
			errs = append(errs, fmt.Errorf("client_id is %.64q, want one like 00000000-0000-0000-0000-000000000000", c.ClientID))
		}
		errs = append(errs, cloud.CheckURL("metadata_url", c.MetadataURL, metadataHost))
	default:
		errs = append(errs, fmt.Errorf("credentials is %.32q, want %s, %s or %s", c.Credentials, FromSecret, FromWorkload, FromManaged))
	}
	return errors.Join(errs...)
}
