package amazon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/cloister/cloister/broker/cloud"
)

// Error is a refusal of a service. Its text holds nothing of the answer but the code.
type Error struct {
	// Action is what was asked, such as "secretsmanager.GetSecretValue".
	Action string
	Status int
	// Code is one such as "ResourceNotFoundException", or "" when the answer has none.
	Code string
}

func (e *Error) Error() string {
	return fmt.Sprintf("AWS answers %s with %d %s", e.Action, e.Status, e.Code)
}

// Is reports whether err is a refusal with this code.
func Is(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// Client asks one service of one region.
type Client struct {
	cfg     Config
	service string // as in signatures and host names
	url     string
	http    *cloud.Client
	clock   *cloud.Clock
	signer  *v4.Signer
	keys    *cloud.Cache[keys]
}

// New makes a Client of a service ("secretsmanager", "kms") that takes answers of at most max bytes. It asks nobody yet.
func New(c Config, service string, max int64, now func() time.Time) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.WithDefaults()
	h, err := cloud.New(c.Bounds, max)
	if err != nil {
		return nil, err
	}
	client := &Client{cfg: c, service: service, url: c.host(service), http: h, clock: cloud.NewClock(now), signer: v4.NewSigner()}
	if c.Endpoint != "" {
		client.url = strings.TrimSuffix(c.Endpoint, "/")
	}
	from, err := newSource(c, client.clock)
	if err != nil {
		return nil, err
	}
	client.keys = cloud.NewCache(client.clock.Now, from)
	return client, nil
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.Close() }

// Call asks for an action ("secretsmanager.GetSecretValue"). A refusal is an *Error.
func (c *Client) Call(ctx context.Context, action string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("asking AWS for %s: the request does not become JSON", action)
	}
	ctx, cancel := context.WithTimeout(ctx, c.http.Timeout())
	defer cancel()
	var serial uint64
	build := func(ctx context.Context) (*http.Request, error) {
		k, s, err := c.keys.Get(ctx)
		if err != nil {
			return nil, fmt.Errorf("getting AWS credentials (%s): %w", c.cfg.Credentials, err)
		}
		serial = s
		return c.sign(ctx, action, body, k)
	}
	// What was refused for its time or its credentials is asked once more with others.
	for clock, renewed := false, false; ; {
		a, err := c.http.Do(ctx, "AWS "+c.service, build, throttled)
		if err != nil {
			return err
		}
		if a.Status/100 == 2 {
			if json.Unmarshal(a.Body, out) != nil {
				return fmt.Errorf("the answer of AWS to %s is not the JSON of one", action)
			}
			return nil
		}
		refusal := &Error{Action: action, Status: a.Status, Code: errorCode(a.Body)}
		switch refusal.Code {
		case "InvalidSignatureException", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "RequestExpired":
			if !clock && c.clock.Learn(a) {
				clock = true
				continue
			}
		case "ExpiredTokenException", "ExpiredToken", "UnrecognizedClientException", "InvalidClientTokenId":
			if !renewed {
				renewed = true
				c.keys.Drop(serial)
				continue
			}
		}
		return refusal
	}
}

func (c *Client) sign(ctx context.Context, action string, body []byte, k keys) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("asking AWS for %s: %w", action, err)
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", action)
	sum := sha256.Sum256(body)
	who := aws.Credentials{AccessKeyID: k.id, SecretAccessKey: k.secret, SessionToken: k.session}
	if err := c.signer.SignHTTP(ctx, who, req, hex.EncodeToString(sum[:]), c.service, c.cfg.Region, c.clock.Now()); err != nil {
		return nil, fmt.Errorf("signing the request to AWS for %s: it has a form that cannot be signed", action)
	}
	return req, nil
}

func throttled(a cloud.Answer) bool {
	if a.Status/100 == 2 {
		return false
	}
	switch errorCode(a.Body) {
	case "ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "LimitExceededException",
		"InternalServiceError", "KMSInternalException", "DependencyTimeoutException":
		return true
	}
	return false
}

// errorCode takes {"__type": "namespace#Code:text"}.
func errorCode(body []byte) string {
	var e struct {
		Type string `json:"__type"`
	}
	if json.Unmarshal(body, &e) != nil {
		return ""
	}
	name, _, _ := strings.Cut(e.Type[strings.LastIndexByte(e.Type, '#')+1:], ":")
	return cloud.Code(name)
}
