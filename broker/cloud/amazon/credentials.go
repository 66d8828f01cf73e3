package amazon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/cloud"
)

// keys are the credentials of a caller; session is "" for long-lived ones.
type keys struct{ id, secret, session string }

// fileLifetime is how long a profile is used before its file is read again.
const fileLifetime = time.Minute

var accessKey = regexp.MustCompile(`\A[A-Za-z0-9_]{16,128}\z`)

// check keeps what cannot be credentials out of headers.
func (k keys) check() error {
	if !accessKey.MatchString(k.id) || k.secret == "" || !cloud.TokenText(k.secret) || k.session != "" && !cloud.TokenText(k.session) {
		return errors.New("what is there are no credentials")
	}
	return nil
}

type fetch = func(context.Context) (keys, time.Time, error)

// newSource is the list of where credentials come from.
func newSource(c Config, clock *cloud.Clock) (fetch, error) {
	switch c.Credentials {
	case FromFile:
		return func(context.Context) (keys, time.Time, error) {
			k, err := readProfile(c.CredentialsFile, c.Profile)
			return k, clock.Now().Add(fileLifetime), err
		}, nil
	case FromWebIdentity:
		h, err := cloud.New(c.Bounds, cloud.MaxFile)
		return func(ctx context.Context) (keys, time.Time, error) { return webIdentity(ctx, h, c) }, err
	case FromContainer:
		h := cloud.NewMetadata()
		return func(ctx context.Context) (keys, time.Time, error) { return container(ctx, h, c) }, nil
	}
	h := cloud.NewMetadata()
	return func(ctx context.Context) (keys, time.Time, error) { return instance(ctx, h, c.MetadataURL) }, nil
}

// readProfile reads a section of an INI file. Lines it does not know are left alone, as everywhere.
func readProfile(file, profile string) (keys, error) {
	raw, err := cloud.ReadFile("credentials_file", file)
	if err != nil {
		return keys{}, err
	}
	defer clear(raw)
	var k keys
	inside, seen := false, false
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if name, ok := strings.CutPrefix(line, "["); ok {
			name, _, _ = strings.Cut(name, "]")
			inside = strings.TrimSpace(name) == profile
			seen = seen || inside
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		if !inside {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "aws_access_key_id":
			k.id = value
		case "aws_secret_access_key":
			k.secret = value
		case "aws_session_token":
			k.session = value
		}
	}
	if err := lines.Err(); err != nil {
		return keys{}, fmt.Errorf("credentials_file: %s is not a file of profiles", file)
	}
	if !seen {
		return keys{}, fmt.Errorf("credentials_file: %s has no profile [%s]", file, profile)
	}
	if err := k.check(); err != nil {
		return keys{}, fmt.Errorf("credentials_file: profile [%s] of %s: %w", profile, file, err)
	}
	return k, nil
}

// webIdentity is the action AssumeRoleWithWebIdentity of STS, which needs no signature: the token is the proof.
func webIdentity(ctx context.Context, h *cloud.Client, c Config) (keys, time.Time, error) {
	const action = "sts.AssumeRoleWithWebIdentity"
	token, err := cloud.ReadToken("web_identity_token_file", c.WebIdentityTokenFile)
	if err != nil {
		return keys{}, time.Time{}, err
	}
	form := url.Values{"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {c.RoleARN},
		"RoleSessionName": {c.SessionName}, "WebIdentityToken": {token}}.Encode()
	a, err := h.Do(ctx, "AWS sts", func(ctx context.Context) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.STSEndpoint, "/")+"/", strings.NewReader(form))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}, nil)
	if err != nil {
		return keys{}, time.Time{}, err
	}
	if a.Status != http.StatusOK {
		var e struct {
			Code string `xml:"Error>Code"`
		}
		_ = xml.Unmarshal(a.Body, &e) // without a code, the status says it
		return keys{}, time.Time{}, &Error{Action: action, Status: a.Status, Code: cloud.Code(e.Code)}
	}
	var r struct {
		ID      string    `xml:"AssumeRoleWithWebIdentityResult>Credentials>AccessKeyId"`
		Secret  string    `xml:"AssumeRoleWithWebIdentityResult>Credentials>SecretAccessKey"`
		Session string    `xml:"AssumeRoleWithWebIdentityResult>Credentials>SessionToken"`
		Expires time.Time `xml:"AssumeRoleWithWebIdentityResult>Credentials>Expiration"`
	}
	if xml.Unmarshal(a.Body, &r) != nil {
		return keys{}, time.Time{}, fmt.Errorf("the answer of AWS to %s is not the XML of one", action)
	}
	k := keys{r.ID, r.Secret, r.Session}
	return k, r.Expires, k.check()
}

// container asks the agent of ECS or EKS.
func container(ctx context.Context, h *cloud.Client, c Config) (keys, time.Time, error) {
	header := http.Header{}
	if c.ContainerTokenFile != "" {
		token, err := cloud.ReadToken("container_token_file", c.ContainerTokenFile)
		if err != nil {
			return keys{}, time.Time{}, err
		}
		header.Set("Authorization", token)
	}
	body, err := local(ctx, h, http.MethodGet, c.ContainerURL, header)
	if err != nil {
		return keys{}, time.Time{}, err
	}
	return parseKeys(body)
}

var roleName = regexp.MustCompile(`\A[\w+=,.@-]{1,128}\z`)

// instance asks the metadata service of EC2, version 2: version 1 would answer a request that a guest or a page made
// this broker send, so it is never tried.
func instance(ctx context.Context, h *cloud.Client, base string) (keys, time.Time, error) {
	base = strings.TrimSuffix(base, "/")
	token, err := local(ctx, h, http.MethodPut, base+"/latest/api/token", http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"60"}})
	if err != nil {
		return keys{}, time.Time{}, err
	}
	if !cloud.TokenText(string(token)) {
		return keys{}, time.Time{}, errors.New("the metadata service of EC2 sent a token that is none")
	}
	header := http.Header{"X-Aws-Ec2-Metadata-Token": {string(token)}}
	const place = "/latest/meta-data/iam/security-credentials/"
	name, err := local(ctx, h, http.MethodGet, base+place, header)
	if err != nil {
		return keys{}, time.Time{}, fmt.Errorf("%w; hint: has the instance a role?", err)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(name)), "\n")
	if !roleName.MatchString(first) {
		return keys{}, time.Time{}, errors.New("the metadata service of EC2 sent a role name that is none")
	}
	body, err := local(ctx, h, http.MethodGet, base+place+first, header)
	if err != nil {
		return keys{}, time.Time{}, err
	}
	return parseKeys(body)
}

func local(ctx context.Context, h *cloud.Client, method, target string, header http.Header) ([]byte, error) {
	a, err := h.Do(ctx, "the metadata service", func(ctx context.Context) (*http.Request, error) {
		req, err := http.NewRequestWithContext(ctx, method, target, nil)
		if err == nil {
			req.Header = header.Clone()
		}
		return req, err
	}, nil)
	if err != nil {
		return nil, err
	}
	if a.Status != http.StatusOK {
		return nil, fmt.Errorf("asking the metadata service at %s: it answers %d, want 200", target, a.Status)
	}
	return a.Body, nil
}

// parseKeys takes what the metadata service and the agents send.
func parseKeys(body []byte) (keys, time.Time, error) {
	var r struct {
		Code            string
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string
		Token           string
		Expiration      time.Time
	}
	if json.Unmarshal(body, &r) != nil || r.Code != "" && r.Code != "Success" {
		return keys{}, time.Time{}, fmt.Errorf("the metadata service sent no credentials (code %s)", cloud.Code(r.Code))
	}
	k := keys{r.AccessKeyID, r.SecretAccessKey, r.Token}
	return k, r.Expiration, k.check()
}
