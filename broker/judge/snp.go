package judge

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	verifier "github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/tee/snp"
)

// snp judges a report of SEV-SNP: binary, with or without the table of certificates behind it or the firmware's header before
// it, as hex or base64, or in the JSON of guests and of configfs-tsm.
func (j *judging) snp() {
	raw, chain, err := snpEvidence(j.Evidence)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	r, err := snp.Parse(raw)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	roots, sources := j.amd(&chain)
	if len(j.bad) > 0 {
		return
	}
	if len(chain.Leaf) == 0 && sources.next == nil {
		j.open(ParseOnly, "no VCEK or VLEK certificate, expected one with the evidence or by --cert: nothing tells who signed the report")
		return
	}
	at := j.at(issuedAll(chain.Leaf, chain.ASK, chain.ARK)...)
	e, err := verifier.VerifyReport(j.ctx, r, chain, verifier.Options{Now: at, Roots: roots, Certificates: sources, AllowMaskedChipID: true})
	if errors.Is(err, verifier.ErrNoIssuer) {
		j.open(ParseOnly, noIssuer, err)
		return
	}
	if err != nil {
		j.refuse("%v", err)
		return
	}
	j.addClaims(verifier.Claims(r, e))
	j.snpPolicy(r)
	j.endorsement(e.Validity, e.Revocation, e.CRLFault, sources)
	j.bindReportData(r.ReportData[:])
	j.bindCut("host_data (init data)", r.HostData[:], j.InitData)
}

// noIssuer says what is missing below a root of the caller's.
const noIssuer = "%v, expected the ASK or ASVK below the root that was given"

// snpPolicy is what the report says that its signature does not make right.
func (j *judging) snpPolicy(r *snp.Report) {
	if r.Version > snp.MaxVersion {
		j.reject("version of the report is %d, expected %d to %d", r.Version, snp.MinVersion, snp.MaxVersion)
	}
	if r.Policy.Debug() {
		j.reject("policy_debug_allowed is true (guest policy %#x, bit 19), expected false: the host can read the guest", uint64(r.Policy))
	}
	if r.Policy.MigrateMA() {
		j.reject("policy_migrate_ma is true (guest policy %#x, bit 18), expected false: a migration agent can move the guest", uint64(r.Policy))
	}
	if r.VMPL > j.MaxVMPL {
		j.reject("vmpl is %d, expected at most %d: less privileged software of the guest, or its host, asked for the report", r.VMPL, j.MaxVMPL)
	} else if r.VMPL > 0 {
		j.remark("vmpl is %d, expected 0 where no firmware stands above the kernel; at most %d is accepted here", r.VMPL, j.MaxVMPL)
	}
	if r.KeyInfo.SigningKey() == snp.VCEK && r.ChipIDMasked() {
		j.reject("chip_id is hidden by the host, expected that of the certificate: it cannot be compared")
	}
}

// endorsement is what stands behind the key: dates and revocation.
func (j *judging) endorsement(validity, revocation string, fault error, sources *amdSources) {
	switch {
	case strings.Contains(validity, "not valid before"):
		j.refuseAs(NotYet, "cert_validity is %q, expected %q", validity, verifier.ValidityOK)
	case validity != verifier.ValidityOK:
		j.outdated("cert_validity is %q, expected %q", validity, verifier.ValidityOK)
	}
	switch {
	case errors.Is(fault, verifier.ErrCRLDate):
		j.outdated("cert_revocation is %q, expected %q", revocation, verifier.RevocationChecked)
	case fault != nil:
		j.refuse("revocation list: %v", fault)
	case revocation != verifier.RevocationChecked && revocation != verifier.RevocationStapled:
		switch {
		case len(sources.crls) > 0: // verifiers of JSON do not say more than this
			j.refuse("cert_revocation is %q, expected %q by the list given", revocation, verifier.RevocationChecked)
		case sources.next != nil:
			j.note("cert_revocation is %q: the authorities were not looked up in a list", revocation)
		default:
			j.note("cert_revocation was not checked: no revocation list (CRL) given")
		}
	}
}

// amd sorts the certificates of the input into a chain, roots and a source of lists. Roots are nil for AMD's.
func (j *judging) amd(chain *verifier.Chain) (*verifier.Roots, *amdSources) {
	sources := &amdSources{next: j.AMD}
	for _, list := range j.CRLs {
		if crl := j.revocationList(list); crl != nil {
			sources.crls = append(sources.crls, crl)
		}
	}
	root := j.certificate("the root (ARK)", j.Root)
	var issuers []*x509.Certificate
	for _, data := range j.Issuers {
		if c := j.certificate("the issuer (ASK or ASVK)", data); c != nil {
			issuers = append(issuers, c)
		}
	}
	if leaf := j.certificate("the VCEK or VLEK certificate", j.Leaf); leaf != nil {
		chain.Leaf = leaf.Raw
	}
	for i, data := range j.Certificates {
		found, err := amdCertificates(data)
		if err != nil {
			j.refuse("certificate %d cannot be read: %v", i+1, err)
			continue
		}
		for _, c := range found {
			switch name := c.Subject.CommonName; {
			case strings.HasPrefix(name, "ARK-"):
				root = c
			case name == "SEV-VCEK" || name == "SEV-VLEK":
				chain.Leaf = c.Raw
			default:
				issuers = append(issuers, c)
			}
		}
	}
	if len(issuers) > 0 && root == nil {
		chain.ASK = issuers[0].Raw // believed if the pinned ARK signed it
		return nil, sources
	}
	if root == nil {
		j.claim("trust_root", "built in: AMD's ARK of the product line")
		return nil, sources
	}
	text := [][]byte{toPEM(root)}
	for _, c := range issuers {
		text = append(text, toPEM(c))
	}
	roots, err := verifier.ParseRoots(text...)
	if err != nil {
		j.refuse("the authorities given: %v", err)
		return nil, sources
	}
	builtIn, err := verifier.AMDRoots()
	j.trusted(root.Subject.CommonName, fingerprint(root), err != nil || !builtIn.Has(root))
	// One of a kind is pinned above; the evidence may bring another, and then the root must have signed it.
	return roots, sources
}

// amdCertificates reads DER, PEM or a table of certificates, whose ARK is no root: a host made the table.
func amdCertificates(data []byte) ([]*x509.Certificate, error) {
	certs, err := certificates(data)
	if err == nil {
		return certs, nil
	}
	table, tableErr := snp.ParseCertTable(data)
	if tableErr != nil || len(table) == 0 {
		return nil, err
	}
	for _, e := range table {
		switch e.GUID.Type() {
		case snp.CertVCEK, snp.CertVLEK, snp.CertASK:
			found, err := certificates(bytes.TrimRight(e.Data, "\x00"))
			if err != nil {
				return nil, fmt.Errorf("%s in the table: %w", e.GUID.Type(), err)
			}
			certs = append(certs, found...)
		}
	}
	return certs, nil
}

// amdSources is the lists given by the caller, before any other source.
type amdSources struct {
	crls []*x509.RevocationList
	next verifier.Certificates
}

// VCEK is part of verifier.Certificates.
func (s *amdSources) VCEK(ctx context.Context, line snp.Line, chipID []byte, tcb snp.TCB) ([]byte, error) {
	if s.next == nil {
		return nil, errors.New("none is given")
	}
	return s.next.VCEK(ctx, line, chipID, tcb)
}

// CRL is part of verifier.Certificates: of several lists, the newest of the line's root.
func (s *amdSources) CRL(ctx context.Context, line snp.Line, vlek bool) ([]byte, error) {
	var newest *x509.RevocationList
	for _, crl := range s.crls {
		ours := len(s.crls) == 1 || crl.Issuer.CommonName == "ARK-"+line.String()
		if ours && (newest == nil || crl.ThisUpdate.After(newest.ThisUpdate)) {
			newest = crl
		}
	}
	if newest != nil {
		return newest.Raw, nil
	}
	if s.next != nil {
		return s.next.CRL(ctx, line, vlek)
	}
	if len(s.crls) > 0 {
		return nil, fmt.Errorf("none of the %d lists given is of ARK-%s", len(s.crls), line)
	}
	return nil, errors.New("no list is given")
}

// snpEvidence finds the report in a file, and the certificates beside it.
func snpEvidence(data []byte) ([]byte, verifier.Chain, error) {
	if isJSON(data) {
		var tsm struct{ OutBlob, AuxBlob string }
		if err := json.Unmarshal(data, &tsm); err == nil && tsm.OutBlob != "" {
			return tsmEvidence(tsm.OutBlob, tsm.AuxBlob)
		}
		return verifier.ParseEvidence(data)
	}
	const rawHeader = 32 // status, size, reserved: what firmware puts before a report
	raw := data
	if decoded := text(data); len(decoded) >= snp.ReportSize {
		raw = decoded
	}
	if len(raw) >= rawHeader+snp.ReportSize && binary.LittleEndian.Uint32(raw) == 0 && binary.LittleEndian.Uint32(raw[4:]) == snp.ReportSize {
		if rest := raw[rawHeader+snp.ReportSize:]; len(bytes.Trim(rest, "\x00")) == 0 {
			return raw[rawHeader:][:snp.ReportSize], verifier.Chain{}, nil
		}
	}
	if len(raw) <= snp.ReportSize {
		return raw, verifier.Chain{}, nil
	}
	chain, err := tableChain(raw[snp.ReportSize:])
	return raw[:snp.ReportSize], chain, err
}

func tsmEvidence(out, aux string) ([]byte, verifier.Chain, error) {
	report, err := anyBase64(out)
	if err != nil {
		return nil, verifier.Chain{}, fmt.Errorf("reading outblob: %w", err)
	}
	table, err := anyBase64(aux)
	if err != nil {
		return nil, verifier.Chain{}, fmt.Errorf("reading auxblob: %w", err)
	}
	if len(table) == 0 {
		return report, verifier.Chain{}, nil
	}
	chain, err := tableChain(table)
	return report, chain, err
}

func anyBase64(s string) ([]byte, error) {
	s = strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(s), "=")
	return base64.RawStdEncoding.DecodeString(s)
}

func tableChain(table []byte) (verifier.Chain, error) {
	entries, err := snp.ParseCertTable(table)
	if err != nil {
		return verifier.Chain{}, fmt.Errorf("%d bytes follow the report, expected none or a table of certificates: %w", len(table), err)
	}
	var c verifier.Chain
	for _, e := range entries {
		var to *[]byte
		switch e.GUID.Type() {
		case snp.CertVCEK, snp.CertVLEK:
			to = &c.Leaf
		case snp.CertASK:
			to = &c.ASK
		case snp.CertARK:
			to = &c.ARK
		case snp.CertCRL:
			to = &c.CRL
		default:
			continue
		}
		if *to == nil {
			*to = bytes.TrimRight(e.Data, "\x00")
		}
	}
	return c, nil
}

// issuedAll is when certificates were issued, of those that can be read.
func issuedAll(files ...[]byte) []time.Time {
	var out []time.Time
	for _, f := range files {
		if len(f) == 0 {
			continue
		}
		if certs, err := certificates(f); err == nil {
			for _, c := range certs {
				out = append(out, c.NotBefore)
			}
		}
	}
	return out
}
