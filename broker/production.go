package broker

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/clientcert"
	"github.com/cloister/cloister/broker/policydir"
	"github.com/cloister/cloister/broker/ratelimit"
	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/reload"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/telemetry"
	"github.com/cloister/cloister/broker/tlscert"
	"github.com/cloister/cloister/broker/tlsprofile"
)

// telemetryTimeout is how long the end of a broker waits for traces to be delivered.
const telemetryTimeout = 3 * time.Second

// openTLS opens the server's certificate, the operator's or one that is made at the first start.
func (b *Broker) openTLS(ctx context.Context) error {
	if b.cfg.Server.InsecureHTTP {
		return nil
	}
	certFile, keyFile := b.cfg.Server.TLSCertificate, b.cfg.Server.TLSKey
	if certFile == "" {
		certFile, keyFile = b.file(CertFile), b.file(KeyFile)
		cert, err := tlscert.LoadOrCreate(certFile, keyFile, b.cfg.Server.TLSHosts, b.now())
		if err != nil {
			return err
		}
		for _, w := range tlscert.Warnings(cert, b.cfg.Server.TLSHosts, b.now()) {
			b.log.Warn(w, "hint", "remove "+certFile+" to make a new one; guests then need new initdata")
		}
	}
	var err error
	if b.cert, err = tlsprofile.OpenCertificate(ctx, certFile, keyFile, b.now); err != nil {
		return fmt.Errorf("reading TLS certificate: %w", err)
	}
	return nil
}

// openProduction opens what a broker needs in production and not on a desk: certificates of administrators, proxies, policies in a
// folder, traces. Each of them is off unless configured.
func (b *Broker) openProduction(ctx context.Context) error {
	var err error
	if c := b.cfg.Admin.Certificates; c.On() {
		if b.clients, err = clientcert.Open(ctx, c.Clients(), b.now); err != nil {
			return fmt.Errorf("admin.certificates: %w", err)
		}
	}
	if b.proxies, err = ratelimit.ParseProxies(b.cfg.Server.TrustedProxies); err != nil {
		return fmt.Errorf("server.trusted_proxies: %w", err)
	}
	if dir := b.cfg.Policies.Directory; dir != "" {
		if b.policyDir, err = policydir.Open(ctx, dir, resource.PolicyID); err != nil {
			return fmt.Errorf("policies.directory: %w", err)
		}
	}
	c := b.cfg.Telemetry
	if c.Replica, err = b.replica(); err != nil {
		return err
	}
	if b.telemetry, err = telemetry.Start(ctx, c, b.version, b.log); err != nil {
		return fmt.Errorf("telemetry: %w", err)
	}
	return nil
}

// identifier tells whose certificate a connection has; nil when none counts.
func (b *Broker) identifier() adminauth.Identifier {
	if b.clients == nil {
		return nil
	}
	return b.clients
}

// tlsConfig is the server side of TLS for a protocol, "http/1.1" or "h2".
func (b *Broker) tlsConfig(protocol string) (*tls.Config, error) {
	if b.clients == nil {
		return tlsprofile.Config(b.cfg.Server.TLSProfile, protocol, b.cert.Get, nil)
	}
	return tlsprofile.Config(b.cfg.Server.TLSProfile, protocol, b.cert.Get, b.clients.Pool)
}

// keySetInterval is how often key sets are fetched again.
const keySetInterval = 5 * time.Minute

// reloadItems are the files that may change while the broker runs.
func (b *Broker) reloadItems() []reload.Item {
	var items []reload.Item
	if b.cert != nil {
		items = append(items, b.cert.Item())
	}
	if b.clients != nil {
		items = append(items, b.clients.Item())
	}
	if b.policyDir != nil {
		items = append(items, b.policyDir.Item())
	}
	var files []string
	for i, p := range b.cfg.Admin.IdentityProviders {
		if i < len(b.adminKeys) {
			items = append(items, reload.Item{
				What: fmt.Sprintf("admin-identity-provider-%d", i+1), Files: []string{p.JWKSet, p.PublicKey}, Every: keySetInterval, Load: b.adminKeys[i].Reload,
			})
		}
	}
	if b.trusted != nil && b.trusted.Keys != nil {
		items = append(items, reload.Item{
			What: "trusted-tokens", Files: b.cfg.TrustedTokens.JWKSets, Every: keySetInterval, Load: b.trusted.Keys.Reload,
		})
	}
	if list := b.cfg.TrustedTokens.Certificates; len(list) > 0 {
		items = append(items, reload.Item{What: "trusted-token-certificates", Files: list, Load: b.loadTokenRoots})
	}
	trust := b.cfg.ReferenceValues
	files = append(append(append(files, trust.SWID.Roots...), trust.CoRIM.Anchors...), trust.InToto.Keys...)
	if len(files) > 0 {
		items = append(items, reload.Item{What: "reference-value-trust", Files: files, Load: b.reloadTrust})
	}
	return items
}

// reloadTrust reads the trust anchors of signed reference values again.
func (b *Broker) reloadTrust(context.Context) error {
	t, err := refstore.LoadTrust(b.cfg.ReferenceValues.Trust())
	if err != nil {
		return err
	}
	b.trust.Store(t)
	b.tenants.each(func(r *realm) {
		if s, ok := r.judge.references.(*refstore.Store); ok {
			s.SetTrust(t)
		}
	})
	return nil
}

// collectors are the metrics of what openProduction opened.
func (b *Broker) collectors() []prometheus.Collector {
	out := append(b.reloads.Collectors(), b.telemetry.Collectors()...)
	if b.cert != nil {
		out = append(out, b.cert.Collectors()...)
	}
	return out
}
