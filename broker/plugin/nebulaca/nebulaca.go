package nebulaca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/slackhq/nebula/cert"

	"github.com/cloister/cloister/broker/plugin"
)

// Name selects the plugin.
const Name = "nebula-ca"

// Plugin signs certificates of nodes.
type Plugin struct {
	ca  *authority
	now func() time.Time
}

// New makes a Plugin, and an authority if there is none yet.
func New(c Config, now func() time.Time) (*Plugin, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	ca, err := load(filepath.Join(c.WorkDir, "ca"), c.CA, now())
	if err != nil {
		return nil, err
	}
	return &Plugin{ca: ca, now: now}, nil
}

// Name is part of plugin.Plugin.
func (*Plugin) Name() string { return Name }

// NeedsAdmin is part of plugin.Plugin.
func (*Plugin) NeedsAdmin(_ context.Context, r *plugin.Request) (bool, error) {
	if r.Method != http.MethodGet || len(r.Path) != 1 || r.Path[0] != "credential" {
		return false, fmt.Errorf("want GET credential?name=…&ip=…: %w", plugin.ErrRequest)
	}
	return false, nil
}

// NeedsEncryption is part of plugin.Plugin.
func (*Plugin) NeedsEncryption(context.Context, *plugin.Request) (bool, error) { return true, nil }

// Handle is part of plugin.Plugin.
func (p *Plugin) Handle(ctx context.Context, r *plugin.Request) (*plugin.Response, error) {
	if _, err := p.NeedsAdmin(ctx, r); err != nil {
		return nil, err
	}
	t, err := p.wanted(r.Query)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, plugin.ErrRequest)
	}
	public, private, err := nodeKey(t.Curve)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	t.PublicKey = public
	// Signing checks the limits of the authority: addresses, subnets, groups and times.
	signed, err := t.Sign(p.ca.cert, t.Curve, p.ca.key)
	if err != nil {
		return nil, fmt.Errorf("signing for %.64q: %w: %w", t.Name, err, plugin.ErrRequest)
	}
	text, err := signed.MarshalPEM()
	if err != nil {
		return nil, fmt.Errorf("writing the certificate: %w", err)
	}
	body, err := json.Marshal(map[string]numbers{
		"node_crt": text, "node_key": cert.MarshalPrivateKeyToPEM(t.Curve, private), "ca_crt": p.ca.pem,
	})
	if err != nil {
		return nil, fmt.Errorf("writing the credential: %w", err)
	}
	return &plugin.Response{Body: body}, nil
}

// wanted reads the parameters, which are those of "nebula-cert sign".
func (p *Plugin) wanted(query map[string]string) (*cert.TBSCertificate, error) {
	ca, now := p.ca.cert, p.now()
	t := &cert.TBSCertificate{
		Version: ca.Version(), Name: query["name"], Curve: ca.Curve(),
		NotBefore: now.Truncate(time.Second),
		// Nodes stop a second before their authority does.
		NotAfter: ca.NotAfter().Add(-time.Second),
	}
	if ca.Expired(now) {
		return nil, fmt.Errorf("the Nebula authority is valid from %s to %s only", ca.NotBefore(), ca.NotAfter())
	}
	errs := []error{checkName("name", t.Name)}
	var err error
	if t.Networks, err = prefixes("ip", query["ip"]); err != nil || len(t.Networks) != 1 {
		errs = append(errs, fmt.Errorf("ip is %.64q, want one address and network such as 10.1.2.3/16", query["ip"]))
	}
	t.UnsafeNetworks, err = prefixes("subnets", query["subnets"])
	errs = append(errs, err)
	t.Groups, err = groups(query["groups"])
	errs = append(errs, err)
	if text := query["duration"]; text != "" {
		life, err := duration(text)
		errs = append(errs, err)
		t.NotAfter = now.Add(life).Truncate(time.Second)
	}
	return t, errors.Join(errs...)
}

// numbers is bytes that are an array of numbers in JSON, as the protocol has them.
type numbers []byte

// MarshalJSON is part of json.Marshaler.
func (n numbers) MarshalJSON() ([]byte, error) {
	wide := make([]uint16, len(n))
	for i, b := range n {
		wide[i] = uint16(b)
	}
	return json.Marshal(wide)
}
