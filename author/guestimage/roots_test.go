package guestimage

import (
	"bytes"
	"crypto/x509"
	"testing"
)

func TestPublicRoots(t *testing.T) {
	one, err := publicRoots()
	if err != nil {
		t.Fatal(err)
	}
	two, err := publicRoots()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("the bundle differs from one call to the next")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(one) || bytes.Count(one, []byte("BEGIN CERTIFICATE")) < 80 {
		t.Errorf("the bundle of %d bytes holds too few authorities", len(one))
	}
}
