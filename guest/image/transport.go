package image

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// ProxyConfig is the [image.image_pull_proxy] table.
type ProxyConfig struct {
	HTTPS   string `toml:"https_proxy"`
	HTTP    string `toml:"http_proxy"`
	NoProxy string `toml:"no_proxy"`
}

// newTransport makes the HTTP transport for registries: TLS 1.2 or newer, the system's roots plus extraRoots (PEM),
// the configured proxies and no others (the environment is not consulted).
func newTransport(proxy ProxyConfig, extraRoots []string) (*http.Transport, error) {
	pool, err := x509.SystemCertPool()
	if err != nil || pool == nil {
		pool = x509.NewCertPool()
	}
	for i, pem := range extraRoots {
		if !pool.AppendCertsFromPEM([]byte(pem)) {
			return nil, fmt.Errorf("extra_root_certificates[%d] holds no PEM certificate", i)
		}
	}
	choose, err := proxy.chooser()
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                  choose,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    20 * time.Second,
		ResponseHeaderTimeout:  60 * time.Second,
		IdleConnTimeout:        30 * time.Second,
		MaxIdleConnsPerHost:    4,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // a blob's bytes are what its digest says, not what an encoding makes of them
		ForceAttemptHTTP2:      true,
	}, nil
}

// chooser returns the function that finds the proxy for a request.
func (p ProxyConfig) chooser() (func(*http.Request) (*url.URL, error), error) {
	parse := func(s string) (*url.URL, error) {
		if s == "" {
			return nil, nil
		}
		if !strings.Contains(s, "://") {
			s = "http://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Host == "" {
			return nil, errors.New("image_pull_proxy holds something that is not a URL") // may carry a password: not printed
		}
		return u, nil
	}
	https, err := parse(p.HTTPS)
	if err != nil {
		return nil, err
	}
	plain, err := parse(p.HTTP)
	if err != nil {
		return nil, err
	}
	return func(r *http.Request) (*url.URL, error) {
		u := plain
		if r.URL.Scheme == "https" {
			u = https
		}
		if u == nil || noProxy(p.NoProxy, r.URL) {
			return nil, nil
		}
		return u, nil
	}, nil
}

// noProxy says whether u's host is in a no_proxy list: host names (with their subdomains), .suffixes, addresses,
// CIDR ranges, each optionally with a port, or *.
func noProxy(list string, u *url.URL) bool {
	host, port := strings.ToLower(u.Hostname()), u.Port()
	addr, addrErr := netip.ParseAddr(host)
	for entry := range strings.SplitSeq(list, ",") {
		entry = strings.ToLower(strings.TrimSpace(entry))
		if entry == "" {
			continue
		}
		if entry == "*" {
			return true
		}
		if prefix, err := netip.ParsePrefix(entry); err == nil {
			if addrErr == nil && prefix.Contains(addr.Unmap()) {
				return true
			}
			continue
		}
		if h, p, err := net.SplitHostPort(entry); err == nil {
			if p != port {
				continue
			}
			entry = h
		}
		entry = strings.TrimPrefix(entry, "*")
		if host == strings.TrimPrefix(entry, ".") || strings.HasSuffix(host, "."+strings.TrimPrefix(entry, ".")) {
			return true
		}
	}
	return false
}
