package collateral

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"sync"
	"testing"
	"time"
)

var start0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: start0} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// fake is a source that does what a test tells it.
type fake struct {
	name string

	mu    sync.Mutex
	calls int
	do    func(q Query) (*Answer, error)
	// gate, when not nil, holds every call until it is closed.
	gate    chan struct{}
	entered chan struct{}
}

func (f *fake) Name() string { return f.name }

func (f *fake) Fetch(ctx context.Context, q Query) (*Answer, error) {
	f.mu.Lock()
	f.calls++
	do, gate, entered := f.do, f.gate, f.entered
	f.mu.Unlock()
	if entered != nil {
		entered <- struct{}{}
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return do(q)
}

func (f *fake) set(do func(q Query) (*Answer, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.do = do
}

func (f *fake) called() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

func always(data, chain []byte) func(Query) (*Answer, error) {
	return func(Query) (*Answer, error) { return &Answer{Data: data, Chain: chain}, nil }
}

func fails(err error) func(Query) (*Answer, error) {
	return func(Query) (*Answer, error) { return nil, err }
}

// authority signs lists.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: start0.AddDate(-1, 0, 0), NotAfter: start0.AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCRLSign | x509.KeyUsageCertSign, SubjectKeyId: []byte{1},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) crl(t testing.TB, issued time.Time, lives time.Duration) []byte {
	t.Helper()
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(issued.Unix()), ThisUpdate: issued, NextUpdate: issued.Add(lives),
	}, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func tcbInfo(issued time.Time, lives time.Duration) []byte {
	return fmt.Appendf(nil, `{"tcbInfo":{"id":"TDX","fmspc":"50806f000000","issueDate":%q,"nextUpdate":%q},"signature":"00"}`,
		issued.Format(time.RFC3339), issued.Add(lives).Format(time.RFC3339))
}

var (
	crlKey = Key{Kind: AMDCRL, Name: "Milan/vcek"}
	tcbKey = Key{Kind: TCBInfo, Name: "tdx/50806F000000/early"}
	rimKey = Key{Kind: RIM, Name: "NV_GPU_DRIVER_GH100_1"}
)

var rimDoc = []byte(`<SoftwareIdentity/>`)

func open(t testing.TB, o Options, sources ...Source) *Cache {
	t.Helper()
	c, err := New(o, sources...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func get(t testing.TB, c *Cache, key Key) Item {
	t.Helper()
	it, err := c.Get(context.Background(), Query{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return it
}
