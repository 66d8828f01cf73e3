package tlsprofile

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cloister/cloister/broker/reload"
)

// Certificate is a certificate chain and its key in two files. It is replaced when they change, for handshakes from then on.
type Certificate struct {
	certFile, keyFile string
	value             *reload.Value[*tls.Certificate]
}

// OpenCertificate reads the files, which must hold a pair. A first certificate may be expired, which clients will notice; one that
// takes the place of another may not.
func OpenCertificate(ctx context.Context, certFile, keyFile string, now func() time.Time) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile}
	first := true
	var err error
	c.value, err = reload.NewValue(ctx, func(context.Context) (*tls.Certificate, error) {
		pair, err := readPair(certFile, keyFile)
		if err == nil && !first {
			err = inForce(pair, certFile, now())
		}
		return pair, err
	})
	first = false
	return c, err
}

// readPair reads certificate and key. While they are being replaced one after the other they do not belong together for a moment,
// which is an error like any other: the next look finds the pair.
func readPair(certFile, keyFile string) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading TLS certificate %s and key %s: %w", certFile, keyFile, err)
	}
	return &pair, nil
}

func inForce(pair *tls.Certificate, file string, now time.Time) error {
	switch leaf := pair.Leaf; {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("TLS certificate %s ended at %s, so it does not replace the one in use", file, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("TLS certificate %s begins at %s, so it does not replace the one in use yet", file, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// Get is tls.Config.GetCertificate.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.value.Get(), nil }

// Current is the certificate in use.
func (c *Certificate) Current() tls.Certificate { return *c.value.Get() }

// Item is what reads the files again.
func (c *Certificate) Item() reload.Item {
	return reload.Item{What: "tls-certificate", Files: []string{c.certFile, c.keyFile}, Load: c.value.Reload}
}

// Collectors are the metrics.
func (c *Certificate) Collectors() []prometheus.Collector {
	return []prometheus.Collector{prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "cloister_tls_certificate_expiry_seconds", Help: "When the TLS certificate in use ends, in seconds since 1970.",
	}, func() float64 { return float64(c.value.Get().Leaf.NotAfter.Unix()) })}
}
