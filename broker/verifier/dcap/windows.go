package dcap

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// ErrNotYetValid is wrapped by the error for a certificate whose time has not come.
var ErrNotYetValid = errors.New("not yet valid")

// link is a certificate and its issuer, both DER.
type link struct{ cert, issuer string }

// windows collects when the certificates and documents of one verification were issued and how long they are good.
type windows struct {
	checked map[link]bool // links of chains whose signature is good

	now                     time.Time
	firstIssued, lastIssued time.Time
	firstExpiry             time.Time
	firstExpiryOf           string
	notYet                  string // what is from the future, the first such
}

func (w *windows) add(what string, from, to time.Time) {
	if w.firstIssued.IsZero() || from.Before(w.firstIssued) {
		w.firstIssued = from
	}
	if from.After(w.lastIssued) {
		w.lastIssued = from
	}
	if w.firstExpiry.IsZero() || to.Before(w.firstExpiry) {
		w.firstExpiry, w.firstExpiryOf = to, what
	}
	if w.notYet == "" && from.After(w.now) {
		w.notYet = fmt.Sprintf("%s is of %s, after %s", what, rfc3339(from), rfc3339(w.now))
	}
}

// cert notes a certificate. One whose time has not come cannot have certified anything yet, which is an error; one whose
// time is over did, so that is left to the policy.
func (w *windows) cert(c *x509.Certificate) error {
	if w.now.Before(c.NotBefore) {
		return fmt.Errorf("%w: certificate of %q is valid from %s, now is %s",
			ErrNotYetValid, c.Subject.CommonName, rfc3339(c.NotBefore), rfc3339(w.now))
	}
	w.add(fmt.Sprintf("certificate of %q", c.Subject.CommonName), c.NotBefore, c.NotAfter)
	return nil
}

// expired says what is outside its window, the first to expire, or nothing.
func (w *windows) expired() string {
	if w.now.After(w.firstExpiry) {
		return fmt.Sprintf("%s was good until %s, now is %s", w.firstExpiryOf, rfc3339(w.firstExpiry), rfc3339(w.now))
	}
	return w.notYet
}

func rfc3339(t time.Time) string { return t.UTC().Format(time.RFC3339) }
