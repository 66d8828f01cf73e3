// Package google asks services of Google Cloud, with OAuth 2.0 tokens.
//
// Where tokens come from is said in the configuration and nowhere else: nothing is taken from the environment or from
// ~/.config/gcloud.
package google

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"

	"github.com/cloister/cloister/broker/cloud"
)

// Where tokens come from.
const (
	// FromKey is the key file (JSON) of a service account.
	FromKey = "service-account"
	// FromWorkload exchanges a token in a file at a workload identity pool.
	FromWorkload = "workload-identity"
	// FromMetadata asks the metadata service of a VM or of GKE.
	FromMetadata = "metadata"
)

// Config says who asks.
type Config struct {
	// Endpoint replaces the address of the service, for example by a regional one.
	Endpoint    string `toml:"endpoint"`
	Credentials string `toml:"credentials"`

	// KeyFile is for FromKey.
	KeyFile string `toml:"key_file"`

	// SubjectTokenFile and Audience (//iam.googleapis.com/projects/…/providers/NAME) are for FromWorkload; the token is
	// then that of ServiceAccount (an address) if it is given. STSEndpoint and IAMEndpoint replace Google's.
	SubjectTokenFile string `toml:"subject_token_file"`
	Audience         string `toml:"audience"`
	ServiceAccount   string `toml:"service_account"`
	STSEndpoint      string `toml:"sts_endpoint"`
	IAMEndpoint      string `toml:"iam_endpoint"`

	// MetadataURL (default http://169.254.169.254) is for FromMetadata.
	MetadataURL string `toml:"metadata_url"`

	cloud.Bounds
}

const (
	stsEndpoint = "https://sts.googleapis.com"
	iamEndpoint = "https://iamcredentials.googleapis.com"
	metadataURL = "http://169.254.169.254"
)

// metadataHosts are names of the metadata service, which serves no TLS. A name is resolved by others: the address is better.
var metadataHosts = []string{"169.254.169.254", "fd20:ce::254", "metadata.google.internal"}

var (
	provider = regexp.MustCompile(`\A//iam\.googleapis\.com/[A-Za-z0-9/_.:-]{1,512}\z`)
	account  = regexp.MustCompile(`\A[A-Za-z0-9.-]{1,128}@[A-Za-z0-9.-]{1,128}\z`)
)

// WithDefaults fills in what is not given.
func (c Config) WithDefaults() Config {
	if c.STSEndpoint == "" {
		c.STSEndpoint = stsEndpoint
	}
	if c.IAMEndpoint == "" {
		c.IAMEndpoint = iamEndpoint
	}
	if c.MetadataURL == "" {
		c.MetadataURL = metadataURL
	}
	return c
}

// Validate reports every fault.
func (c Config) Validate() error {
	c = c.WithDefaults()
	errs := []error{c.Bounds.Validate()}
	if c.Endpoint != "" {
		errs = append(errs, cloud.CheckURL("endpoint", c.Endpoint))
	}
	switch c.Credentials {
	case FromKey:
		if !filepath.IsAbs(c.KeyFile) {
			errs = append(errs, errors.New("key_file: want an absolute path of the JSON file of a service account"))
		}
	case FromWorkload:
		if !filepath.IsAbs(c.SubjectTokenFile) {
			errs = append(errs, errors.New("subject_token_file: want an absolute path"))
		}
		if !provider.MatchString(c.Audience) {
			errs = append(errs, fmt.Errorf("audience is %.128q, want //iam.googleapis.com/projects/…/providers/NAME", c.Audience))
		}
		if c.ServiceAccount != "" && !account.MatchString(c.ServiceAccount) {
			errs = append(errs, fmt.Errorf("service_account is %.128q, want the address of one", c.ServiceAccount))
		}
		errs = append(errs, cloud.CheckURL("sts_endpoint", c.STSEndpoint), cloud.CheckURL("iam_endpoint", c.IAMEndpoint))
	case FromMetadata:
		errs = append(errs, cloud.CheckURL("metadata_url", c.MetadataURL, metadataHosts...))
	default:
		errs = append(errs, fmt.Errorf("credentials is %.32q, want %s, %s or %s", c.Credentials, FromKey, FromWorkload, FromMetadata))
	}
	return errors.Join(errs...)
}
