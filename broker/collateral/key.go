package collateral

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Kind is a kind of document.
type Kind string

// The kinds, and how their names are made. Names consist of path segments of letters, digits, dots, underscores and hyphens.
const (
	VCEK       Kind = "amd-vcek"          // Milan/<chip id>/bl03_tee00_snp08_ucode115, for Turin with _fmc01; DER
	AMDChain   Kind = "amd-chain"         // Milan/vcek or Milan/vlek; PEM, the ASK or ASVK first, then the ARK
	AMDCRL     Kind = "amd-crl"           // Milan/vcek or Milan/vlek; DER, signed by the ARK
	TCBInfo    Kind = "intel-tcb-info"    // tdx/50806F000000/early; JSON with signature
	QEIdentity Kind = "intel-qe-identity" // tdx/early; JSON with signature
	PCKCRL     Kind = "intel-pck-crl"     // platform or processor; DER
	RootCRL    Kind = "intel-root-crl"    // root; DER
	RIM        Kind = "nvidia-rim"        // NV_GPU_DRIVER_GH100_550.90.07; signed SWID XML
	OCSP       Kind = "nvidia-ocsp"       // hexadecimal SHA-256 of the request; DER
)

// Kinds lists the kinds.
func Kinds() []Kind {
	return []Kind{VCEK, AMDChain, AMDCRL, TCBInfo, QEIdentity, PCKCRL, RootCRL, RIM, OCSP}
}

// Platform is whose hardware a kind is about.
func (k Kind) Platform() string {
	vendor, _, _ := strings.Cut(string(k), "-")
	return vendor
}

// revocation tells whether documents of the kind revoke others: those are never served stale.
func (k Kind) revocation() bool { return k == AMDCRL || k == PCKCRL || k == RootCRL || k == OCSP }

// judged tells whether verifiers report the document's own expiry as a claim, so that a policy can decide on it.
func (k Kind) judged() bool { return k == TCBInfo || k == QEIdentity }

// Key names one document.
type Key struct {
	Kind Kind
	Name string
}

// String is kind and name.
func (k Key) String() string { return string(k.Kind) + " " + k.Name }

// maxName bounds a name in bytes.
const maxName = 256

// Validate refuses unknown kinds and names that are unsafe as paths.
func (k Key) Validate() error {
	known := false
	for _, kind := range Kinds() {
		known = known || kind == k.Kind
	}
	if !known {
		return fmt.Errorf("collateral kind is %.32q, expected one of %v", k.Kind, Kinds())
	}
	if len(k.Name) > maxName {
		return fmt.Errorf("collateral name has %d bytes, expected at most %d", len(k.Name), maxName)
	}
	for part := range strings.SplitSeq(k.Name, "/") {
		if part == "" || part[0] == '.' || strings.Trim(part, nameChars) != "" {
			return fmt.Errorf("collateral name is %.64q, expected path segments of letters, digits, dots, underscores and hyphens", k.Name)
		}
	}
	return nil
}

const nameChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"

// Query asks for a document.
type Query struct {
	Key Key
	// Body and URL are the request of an OCSP query and the responder that the certificate names; other kinds have none.
	Body []byte
	URL  string
	// NoStore asks the sources without looking into the cache or changing it: for answers that are good only once.
	NoStore bool
}

// Answer is what a source delivered.
type Answer struct {
	Data []byte
	// Chain is the issuer chain that came beside the document, PEM: Intel delivers it in a header.
	Chain []byte
	// MaxAge is how long the source lets the answer be kept without asking again; zero when it did not say.
	MaxAge time.Duration
}

// Source is a place documents come from.
type Source interface {
	// Name is how messages call the source.
	Name() string
	// Fetch returns a document, or an error that wraps ErrNotCovered when the source never has such documents, ErrNotFound when it
	// has not this one, or a *BusyError when it cannot answer anybody at the moment.
	Fetch(ctx context.Context, q Query) (*Answer, error)
}

// Getter is what the adapters for verifiers need of a Cache.
type Getter interface {
	Get(ctx context.Context, q Query) (Item, error)
}

// Item is a document in the cache. Its bytes are shared: nobody changes them.
type Item struct {
	Key     Key
	Data    []byte
	Chain   []byte
	Source  string
	Fetched time.Time
	// Issued and Until are the window the document states for itself; zero where it states none.
	Issued, Until time.Time
	// Refresh is when the document is asked for again.
	Refresh time.Time
	// Outage is why a newer document could not be had, when this one is due for a refresh. It is nil for a current one.
	Outage error

	written time.Time // of its file, when there is one
}

func (it *Item) size() int64 { return int64(len(it.Data)+len(it.Chain)) + itemOverhead }

// itemOverhead is what an entry costs beside its bytes.
const itemOverhead = 512

// expired tells whether the document's own window has ended.
func (it *Item) expired(now time.Time) bool { return !it.Until.IsZero() && now.After(it.Until) }
