package snp

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/cloister/cloister/tee/snp"
)

// Chain is the certificates that came with a report, DER or PEM, as far as any did. All of them are only believed for what
// a pinned authority signed.
type Chain struct {
	Leaf []byte // VCEK or VLEK
	ASK  []byte // ASK or ASVK, for an authority newer than the pinned one
	ARK  []byte // compared with the pinned one
	CRL  []byte
}

// ErrNoIssuer is wrapped by the error when neither pinned authorities nor evidence have the ASK or ASVK that issued the leaf.
var ErrNoIssuer = errors.New("no authority")

// Endorsement is what stands behind a genuine report.
type Endorsement struct {
	Line   snp.Line
	Key    snp.SigningKey // VCEK or VLEK
	CSPID  string         // of a VLEK: the cloud provider
	TCB    snp.TCB        // REPORTED_TCB, which the leaf was made for
	Masked bool           // the chip's number is hidden from us
	// Validity is ValidityOK, or which certificate is outside its time.
	Validity string
	// Revocation is RevocationChecked, RevocationStapled, or RevocationUnavailable with the reason.
	Revocation string
	// CRLFault is why a list that there was is of no use: ErrCRLDate in it means its age alone. Nil when there was none.
	CRLFault error
}

// ValidityOK is the claim cert_validity when every certificate is within its time.
const ValidityOK = "valid"

// VerifyReport checks that a report is genuine: signed, with the key that a pinned authority certified for this chip, this
// product line and this TCB version, by authorities that are not revoked. What the report says is left to the caller; of
// o it uses Now, Roots, Certificates and AllowMaskedChipID.
func VerifyReport(ctx context.Context, r *snp.Report, chain Chain, o Options) (*Endorsement, error) {
	roots, err := o.check()
	if err != nil {
		return nil, err
	}
	if r.SignatureAlgo != snp.AlgECDSAP384SHA384 {
		return nil, fmt.Errorf("signature algorithm of the report is %d, expected %d (ECDSA P-384 with SHA-384)",
			r.SignatureAlgo, snp.AlgECDSAP384SHA384)
	}
	if !r.Policy.ReservedOne() {
		return nil, fmt.Errorf("guest policy is %#x, expected its bit 17 to be set as firmware demands", uint64(r.Policy))
	}
	key := r.KeyInfo.SigningKey()
	if key != snp.VCEK && key != snp.VLEK {
		return nil, fmt.Errorf("signing key of the report is %s, expected VCEK or VLEK", key)
	}
	if len(chain.Leaf) == 0 {
		if chain.Leaf, err = fetchVCEK(ctx, r, o.Certificates); err != nil {
			return nil, err
		}
	}
	leaf, err := parseLeaf(chain.Leaf)
	if err != nil {
		return nil, err
	}
	line, err := leaf.checkReport(r, o.AllowMaskedChipID)
	if err != nil {
		return nil, err
	}
	a := roots.lines[line]
	if a == nil {
		return nil, fmt.Errorf("no authority of product line %s is pinned", line)
	}
	issuer, err := a.verify(leaf, chain)
	if err != nil {
		return nil, err
	}
	if err := verifySignature(r, leaf.key); err != nil {
		return nil, err
	}
	e := &Endorsement{Line: line, Key: key, CSPID: leaf.CSPID, TCB: leaf.TCB, Masked: r.ChipIDMasked()}
	e.Validity = validity(o.Now, leaf.cert, issuer, a.ark)
	if e.Revocation, e.CRLFault, err = revocation(ctx, a.ark, issuer, line, key == snp.VLEK, chain.CRL, o); err != nil {
		return nil, err
	}
	return e, nil
}

// fetchVCEK gets the leaf from the source of certificates, when the evidence has none.
func fetchVCEK(ctx context.Context, r *snp.Report, source Certificates) ([]byte, error) {
	if source == nil {
		return nil, errors.New("the evidence has no VCEK or VLEK certificate, and no source of them is configured")
	}
	if key := r.KeyInfo.SigningKey(); key != snp.VCEK {
		return nil, fmt.Errorf("the evidence has no certificate and the report is signed with a %s: only a VCEK can be fetched", key)
	}
	line, err := r.Line()
	if err != nil {
		return nil, fmt.Errorf("the evidence has no VCEK certificate and it cannot be fetched: %w", err)
	}
	if r.ChipIDMasked() {
		return nil, errors.New("the evidence has no VCEK certificate and it cannot be fetched: the host hides the chip id")
	}
	der, err := source.VCEK(ctx, line, r.ChipID[:line.ChipIDSize()], snp.DecodeTCB(line, r.ReportedTCB))
	if err != nil {
		return nil, fmt.Errorf("fetching the VCEK certificate: %w", err)
	}
	return der, nil
}

// leaf is a VCEK or VLEK certificate.
type leaf struct {
	*snp.Leaf
	cert *x509.Certificate
	key  *ecdsa.PublicKey
	line snp.Line // by its issuer, product name and form of the TCB, which agree
}

func parseLeaf(data []byte) (*leaf, error) {
	der, err := snp.DER(data)
	if err != nil {
		return nil, fmt.Errorf("reading the VCEK or VLEK certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the VCEK or VLEK certificate: %w", err)
	}
	ext, err := snp.ParseLeaf(cert.Extensions)
	if err != nil {
		return nil, fmt.Errorf("reading the VCEK or VLEK certificate: %w", err)
	}
	l := &leaf{Leaf: ext, cert: cert}
	var ok bool
	if l.key, ok = cert.PublicKey.(*ecdsa.PublicKey); !ok || l.key.Curve != elliptic.P384() {
		return nil, fmt.Errorf("key of the %s certificate is a %s key, expected ECDSA on P-384", ext.Kind(), cert.PublicKeyAlgorithm)
	}
	line, vlek, err := snp.LineOfIssuer(cert.Issuer.CommonName)
	if err != nil {
		return nil, fmt.Errorf("reading the %s certificate: %w", ext.Kind(), err)
	}
	if vlek != (ext.Kind() == snp.VLEK) {
		return nil, fmt.Errorf("the certificate is a %s by its extensions, but was issued by %q", ext.Kind(), cert.Issuer.CommonName)
	}
	if want := "SEV-" + ext.Kind().String(); cert.Subject.CommonName != want {
		return nil, fmt.Errorf("subject of the %s certificate is %.48q, expected %q", ext.Kind(), cert.Subject.CommonName, want)
	}
	product, err := ext.ProductLine()
	if err != nil || product != line {
		return nil, fmt.Errorf("product name of the certificate is %q, expected %s as its issuer", ext.Product, line)
	}
	if ext.HasFMC != line.HasFMC() {
		return nil, fmt.Errorf("certificate of product line %s has an FMC level: %t, expected %t", line, ext.HasFMC, line.HasFMC())
	}
	if n := len(ext.HWID); ext.Kind() == snp.VCEK && n != line.ChipIDSize() {
		return nil, fmt.Errorf("hwID of the certificate has %d bytes, expected %d on %s", n, line.ChipIDSize(), line)
	}
	l.line = line
	return l, nil
}

// checkReport checks that the certificate is for the machine and firmware the report is from.
func (l *leaf) checkReport(r *snp.Report, allowMasked bool) (snp.Line, error) {
	if key := r.KeyInfo.SigningKey(); key != l.Kind() {
		return 0, fmt.Errorf("signing key of the report is %s, the certificate is a %s", key, l.Kind())
	}
	if r.HasCPUID() {
		line, err := r.Line()
		if err != nil {
			return 0, err
		}
		if line != l.line {
			return 0, fmt.Errorf("report is from a %s processor, the certificate is for %s", line, l.line)
		}
	}
	if got := snp.DecodeTCB(l.line, r.ReportedTCB); got != l.TCB {
		return 0, fmt.Errorf("reported TCB is (%s), the certificate is for (%s)", got, l.TCB)
	}
	if l.Kind() == snp.VLEK {
		return l.line, nil
	}
	if r.ChipIDMasked() && !allowMasked {
		return 0, errors.New("chip id is hidden by the host (MASK_CHIP_KEY or zero), so that the certificate cannot be held against it")
	}
	got := r.ChipID[:l.line.ChipIDSize()]
	if r.ChipID != ([snp.ChipIDSize]byte{}) && subtle.ConstantTimeCompare(got, l.HWID) != 1 {
		return 0, fmt.Errorf("chip id of the report is %x, the certificate is for %x", got, l.HWID)
	}
	return l.line, nil
}

// verify checks the leaf up to the pinned ARK and returns its issuer: the pinned one, or one from the evidence that the ARK
// has signed.
func (a *authorities) verify(l *leaf, chain Chain) (*x509.Certificate, error) {
	if len(chain.ARK) > 0 {
		ark, err := parseAuthority("ARK", chain.ARK)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(ark.Raw, a.ark.Raw) {
			if err := signedBy(ark, a.ark); err != nil {
				return nil, fmt.Errorf("the ARK in the evidence is not that of %s: %w", l.line, err)
			}
		}
	}
	issuer := a.issuer(l.Kind() == snp.VLEK)
	if len(chain.ASK) > 0 {
		given, err := parseAuthority("ASK", chain.ASK)
		if err != nil {
			return nil, err
		}
		if issuer == nil || !bytes.Equal(given.Raw, issuer.Raw) {
			if err := signedBy(given, a.ark); err != nil {
				return nil, fmt.Errorf("the ASK in the evidence is not signed by ARK-%s: %w", l.line, err)
			}
			issuer = given
		}
	}
	if issuer == nil {
		return nil, fmt.Errorf("%w for %s certificates of %s is pinned", ErrNoIssuer, l.Kind(), l.line)
	}
	if err := signedBy(l.cert, issuer); err != nil {
		return nil, fmt.Errorf("the %s certificate is not signed by %s: %w", l.Kind(), issuer.Subject.CommonName, err)
	}
	return issuer, nil
}

func parseAuthority(name string, data []byte) (*x509.Certificate, error) {
	der, err := snp.DER(data)
	if err != nil {
		return nil, fmt.Errorf("reading the %s in the evidence: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the %s in the evidence: %w", name, err)
	}
	return cert, nil
}

func verifySignature(r *snp.Report, key *ecdsa.PublicKey) error {
	digest := sha512.Sum384(r.Signed[:])
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(r.R[:]), new(big.Int).SetBytes(r.S[:])) {
		return errors.New("signature of the report does not verify under the key of its certificate")
	}
	return nil
}

// validity names the first certificate that is outside its time.
func validity(now time.Time, chain ...*x509.Certificate) string {
	for _, c := range chain {
		switch {
		case now.Before(c.NotBefore):
			return fmt.Sprintf("%s is not valid before %s", c.Subject.CommonName, c.NotBefore.UTC().Format(time.RFC3339))
		case now.After(c.NotAfter):
			return fmt.Sprintf("%s expired %s", c.Subject.CommonName, c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	return ValidityOK
}
