package dcap

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/tee/quote"
)

// judgement is what collateral says about a platform.
type judgement struct {
	status     Status
	date       time.Time // of the oldest level that matched
	advisories []string
	evalNumber uint32
	pckCRL     *big.Int
	rootCRL    *big.Int
}

func (j *judgement) note(v verdict) {
	if j.date.IsZero() || v.Date.Before(j.date) {
		j.date = v.Date
	}
	j.advisories = append(j.advisories, v.Advisories...)
}

// judge verifies the collateral and holds the platform against it.
func judge(q *quote.Quote, chain *pckCerts, root *x509.Certificate, c *Collateral, w *windows) (*judgement, error) {
	j := new(judgement)
	tcbBody, tcbSigner, err := open("TCB info", c.TCBInfo, c.TCBInfoIssuerChain, root, w,
		func(d *signedDocument) json.RawMessage { return d.TCBInfo })
	if err != nil {
		return nil, err
	}
	qeBody, qeSigner, err := open("QE identity", c.QEIdentity, c.QEIdentityIssuerChain, root, w,
		func(d *signedDocument) json.RawMessage { return d.EnclaveIdentity })
	if err != nil {
		return nil, err
	}
	if err := j.revocation(chain, root, c, w, tcbSigner, qeSigner); err != nil {
		return nil, err
	}
	info, err := parseTCBInfo(tcbBody, q.TEE, chain.pck)
	if err != nil {
		return nil, err
	}
	identity, err := parseQEIdentity(qeBody, q.TEE)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(info.note("TCB info", w), identity.note("QE identity", w)); err != nil {
		return nil, err
	}
	j.evalNumber = min(info.EvalNumber, identity.EvalNumber)

	qe, err := identity.check(&q.QEReport)
	if err != nil {
		return nil, err
	}
	if err := j.platform(q, chain.pck, info, qe); err != nil {
		return nil, err
	}
	slices.Sort(j.advisories)
	j.advisories = slices.Compact(j.advisories)
	if j.status == Revoked {
		return nil, &TCBError{Status: Revoked, Advisories: j.advisories, why: "TCB status is Revoked, expected one that is not"}
	}
	return j, nil
}

// revocation verifies both lists and looks up every certificate that was used. The PCK CA that signed the leaf must also have
// signed the list; the chain that comes with the list is checked when it is there, and adds nothing else.
func (j *judgement) revocation(chain *pckCerts, root *x509.Certificate, c *Collateral, w *windows, signers ...*x509.Certificate) error {
	fromRoot := append([]*x509.Certificate{chain.issuer}, signers...)
	if len(c.PCKCRLIssuerChain) > 0 {
		certs, err := parseChain(c.PCKCRLIssuerChain)
		if err != nil {
			return fmt.Errorf("PCK CRL issuer chain: %w", err)
		}
		if !bytes.Equal(certs[0].RawSubject, chain.issuer.RawSubject) {
			return fmt.Errorf("PCK CRL issuer chain is of %q, expected %q", certs[0].Subject.CommonName, chain.issuer.Subject.CommonName)
		}
		if err := checkIssued(certs[0], root, w); err != nil {
			return fmt.Errorf("PCK CRL issuer chain: %w", err)
		}
		if len(certs) > 2 {
			return fmt.Errorf("PCK CRL issuer chain has %d certificates, expected the issuer and the root", len(certs))
		}
		if len(certs) == 2 {
			if err := checkRoot(certs[1], root); err != nil {
				return fmt.Errorf("PCK CRL issuer chain: %w", err)
			}
		}
		fromRoot = append(fromRoot, certs[0])
	}
	rootCRL, err := crl("root CRL", c.RootCRL, root, w)
	if err != nil {
		return err
	}
	if err := checkRevoked(rootCRL, fromRoot...); err != nil {
		return err
	}
	pckCRL, err := crl("PCK CRL", c.PCKCRL, chain.issuer, w)
	if err != nil {
		return err
	}
	if err := checkRevoked(pckCRL, chain.leaf); err != nil {
		return err
	}
	j.pckCRL, j.rootCRL = pckCRL.Number, rootCRL.Number
	return nil
}

// platform finds the TCB levels and merges their statuses (evidence-layouts.md section 2.7).
func (j *judgement) platform(q *quote.Quote, pck *quote.PCK, info *tcbInfo, qe *identityLevel) error {
	var identity *moduleIdentity
	if q.TD != nil {
		var err error
		if identity, err = info.module(q.TD); err != nil {
			return err
		}
	}
	level, err := info.level(pck, q.TD)
	if err != nil {
		return err
	}
	j.note(level.verdict)
	j.status = level.Status
	module := UpToDate
	if identity != nil {
		l, err := matchSVN("TDX module ISVSVN", identity.Levels, uint16(q.TD.TCBSVN[0]))
		if err != nil {
			return err
		}
		j.note(l.verdict)
		module = l.Status
		j.status = j.status.with(module)
	}
	j.note(qe.verdict)
	if q.TD != nil && qe.Status == UpToDate && module == OutOfDate && j.status.outOfDate() && info.currentSince(pck, q.TD) {
		j.status = j.status.relaunch()
	}
	j.status = j.status.with(qe.Status)
	return nil
}

// module checks who signed the TDX module and returns its identity, nil for modules of version 0, which have no levels of
// their own.
func (info *tcbInfo) module(td *quote.TDReport) (*moduleIdentity, error) {
	version := td.TCBSVN[1]
	if version == 0 {
		if info.Module == nil {
			return nil, errors.New("TCB info has no tdxModule")
		}
		return nil, info.Module.check(td)
	}
	m, err := info.moduleOf(version)
	if err != nil {
		return nil, err
	}
	if err := m.check(td); err != nil {
		return nil, err
	}
	return m, nil
}

// moduleOf finds the identity of a module version. Only the one that is needed is checked for sense.
func (info *tcbInfo) moduleOf(version byte) (*moduleIdentity, error) {
	id := fmt.Sprintf("TDX_%02X", version)
	for i := range info.Modules {
		if m := &info.Modules[i]; strings.EqualFold(m.ID, id) {
			return m, checkLevels("TDX module identity "+id, m.Levels)
		}
	}
	return nil, fmt.Errorf("TDX module is of version %d, TCB info has no identity %s", version, id)
}

func (m *moduleIdentity) check(td *quote.TDReport) error {
	if !bytes.Equal(td.MRSignerSEAM, m.MRSigner) {
		return fmt.Errorf("MRSIGNERSEAM = %x, expected %x", td.MRSignerSEAM, []byte(m.MRSigner))
	}
	return masked("SEAMATTRIBUTES", td.SEAMAttributes, m.Attributes, m.AttributesMask)
}

// level finds the first level, newest first, that the platform reaches. TDX module versions above 0 are compared through
// their identity, so the first two TDX components count for version 0 only. A nil td compares the SGX part alone.
func (info *tcbInfo) level(pck *quote.PCK, td *quote.TDReport) (*tcbLevel, error) {
	for i := range info.Levels {
		l := &info.Levels[i]
		if !atLeast(pck.Components[:], l.SGX[:]) || pck.PCESVN < l.PCESVN {
			continue
		}
		if td != nil {
			from := 0
			if td.TCBSVN[1] > 0 {
				from = 2
			}
			if !atLeast(td.TCBSVN[from:], l.TDX[from:]) {
				continue
			}
		}
		return l, nil
	}
	svn := "none"
	if td != nil {
		svn = fmt.Sprintf("%x", td.TCBSVN)
	}
	return nil, notSupported("platform TCB (components %x, PCESVN %d, TEE_TCB_SVN %s) is below every TCB level (TCB_NOT_SUPPORTED)",
		pck.Components, pck.PCESVN, svn)
}

func atLeast(got, want []uint8) bool {
	for i := range want {
		if got[i] < want[i] {
			return false
		}
	}
	return true
}

// currentSince reports whether the platform has been updated since the TD was launched, so that only launching it anew is
// missing: the SGX part is not out of date, and TEE_TCB_SVN_2 reaches the newest module and the newest level.
func (info *tcbInfo) currentSince(pck *quote.PCK, td *quote.TDReport) bool {
	if td.TCBSVN2 == nil {
		return false
	}
	sgx, err := info.level(pck, nil)
	if err != nil || sgx.Status.outOfDate() || sgx.Status == Revoked {
		return false
	}
	newest := info.Levels[0].TDX
	if td.TCBSVN2[1] == 0 {
		return td.TCBSVN2[0] >= newest[0] && td.TCBSVN2[2] >= newest[2]
	}
	m, err := info.moduleOf(td.TCBSVN2[1])
	if err != nil {
		return false
	}
	return uint16(td.TCBSVN2[0]) >= m.Levels[0].TCB.ISVSVN && td.TCBSVN2[2] >= newest[2]
}
