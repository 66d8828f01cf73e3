// Package amazon asks AWS services that speak JSON, with requests signed by Signature Version 4.
//
// Where credentials come from is said in the configuration and nowhere else: nothing is taken from the environment or
// from ~/.aws, and there is no chain of guesses.
package amazon

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/cloister/cloister/broker/cloud"
)

// Where credentials come from.
const (
	// FromFile is the usual file of profiles with long-lived or temporary keys.
	FromFile = "file"
	// FromWebIdentity exchanges a token in a file, such as that of a Kubernetes service account, for those of a role (IRSA).
	FromWebIdentity = "web-identity"
	// FromContainer asks the agent of ECS or EKS Pod Identity.
	FromContainer = "container"
	// FromInstance asks the metadata service (version 2) of an EC2 instance.
	FromInstance = "instance"
)

// Config says where a service is and who asks.
type Config struct {
	Region string `toml:"region"`
	// Endpoint replaces https://SERVICE.REGION.amazonaws.com, for example by that of a VPC.
	Endpoint string `toml:"endpoint"`
	// Credentials is one of the constants above.
	Credentials string `toml:"credentials"`

	// CredentialsFile and Profile (default "default") are for FromFile.
	CredentialsFile string `toml:"credentials_file"`
	Profile         string `toml:"profile"`

	// RoleARN, WebIdentityTokenFile and SessionName (default "cloister-broker") are for FromWebIdentity; STSEndpoint
	// replaces https://sts.REGION.amazonaws.com.
	RoleARN              string `toml:"role_arn"`
	WebIdentityTokenFile string `toml:"web_identity_token_file"`
	SessionName          string `toml:"session_name"`
	STSEndpoint          string `toml:"sts_endpoint"`

	// ContainerURL (default that of EKS Pod Identity) and ContainerTokenFile (may be empty for ECS) are for FromContainer.
	ContainerURL       string `toml:"container_url"`
	ContainerTokenFile string `toml:"container_token_file"`

	// MetadataURL (default http://169.254.169.254) is for FromInstance.
	MetadataURL string `toml:"metadata_url"`

	cloud.Bounds
}

const (
	metadataURL  = "http://169.254.169.254"
	containerURL = "http://169.254.170.23/v1/credentials"
)

// Addresses that belong to the machine itself, where AWS serves no TLS.
var (
	metadataHosts  = []string{"169.254.169.254", "fd00:ec2::254"}
	containerHosts = []string{"169.254.170.2", "169.254.170.23", "fd00:ec2::23"}
)

var (
	region  = regexp.MustCompile(`\A[a-z]{2}(-[a-z]+)+-[0-9]\z`)
	role    = regexp.MustCompile(`\Aarn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,512}\z`)
	session = regexp.MustCompile(`\A[\w+=,.@-]{2,64}\z`)
)

// WithDefaults fills in what is not given.
func (c Config) WithDefaults() Config {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&c.Profile, "default")
	def(&c.SessionName, "cloister-broker")
	def(&c.MetadataURL, metadataURL)
	def(&c.ContainerURL, containerURL)
	def(&c.STSEndpoint, c.host("sts"))
	return c
}

// host is where a service of the region is.
func (c Config) host(service string) string {
	suffix := "amazonaws.com"
	if strings.HasPrefix(c.Region, "cn-") {
		suffix += ".cn"
	}
	return "https://" + service + "." + c.Region + "." + suffix
}

// Validate reports every fault.
func (c Config) Validate() error {
	c = c.WithDefaults()
	errs := []error{c.Bounds.Validate()}
	if !region.MatchString(c.Region) {
		errs = append(errs, fmt.Errorf("region is %.64q, want one like eu-central-1", c.Region))
	}
	if c.Endpoint != "" {
		errs = append(errs, cloud.CheckURL("endpoint", c.Endpoint))
	}
	switch c.Credentials {
	case FromFile:
		if !filepath.IsAbs(c.CredentialsFile) {
			errs = append(errs, errors.New("credentials_file: want an absolute path of a file of profiles"))
		}
	case FromWebIdentity:
		if !role.MatchString(c.RoleARN) {
			errs = append(errs, fmt.Errorf("role_arn is %.128q, want arn:aws:iam::ACCOUNT:role/NAME", c.RoleARN))
		}
		if !filepath.IsAbs(c.WebIdentityTokenFile) {
			errs = append(errs, errors.New("web_identity_token_file: want an absolute path"))
		}
		if !session.MatchString(c.SessionName) {
			errs = append(errs, fmt.Errorf("session_name is %.64q, want 2 to 64 letters, digits and '_+=,.@-'", c.SessionName))
		}
		errs = append(errs, cloud.CheckURL("sts_endpoint", c.STSEndpoint))
	case FromContainer:
		errs = append(errs, cloud.CheckURL("container_url", c.ContainerURL, containerHosts...))
		if c.ContainerTokenFile != "" && !filepath.IsAbs(c.ContainerTokenFile) {
			errs = append(errs, errors.New("container_token_file: want an absolute path"))
		}
	case FromInstance:
		errs = append(errs, cloud.CheckURL("metadata_url", c.MetadataURL, metadataHosts...))
	default:
		errs = append(errs, fmt.Errorf("credentials is %.32q, want %s, %s, %s or %s",
			c.Credentials, FromFile, FromWebIdentity, FromContainer, FromInstance))
	}
	return errors.Join(errs...)
}
