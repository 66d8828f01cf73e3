package judge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	verifier "github.com/cloister/cloister/broker/verifier/csv"
	"github.com/cloister/cloister/tee/csv"
)

const (
	extendedMagic = "ATTESTATION_EXT\x00"
	hygonRootName = "Hygon's root (HRK)"
)

// csv judges a report of a Hygon CSV guest: the JSON of guests, or the report as firmware returns it.
func (j *judging) csv() {
	root, chain := j.hygon()
	if len(j.bad) > 0 {
		return
	}
	e, err := j.csvEvidence(chain)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	given, err := j.hygonRoot(root)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	claims, err := verifier.VerifyParsed(j.ctx, e, verifier.Options{Root: given, Offline: true})
	if errors.Is(err, verifier.ErrNoEndorsement) {
		j.open(ValidSignature, "no certificates of chip %s given, expected hsk_cek by --cert: the report is signed by the key it brought",
			e.Serial)
	} else if err != nil {
		j.refuse("%v", err)
		return
	}
	j.addClaims(claims)
	if err != nil {
		j.claim("serial_number", e.Serial)
	}
	if !e.Report.Policy.NoDebug() {
		j.reject("policy.nodbg is 0 (guest policy %#x), expected 1: the host can read the guest", uint32(e.Report.Policy))
	}
	if !isJSON(j.Evidence) {
		j.hygonLayout(j.Evidence, e.Report.Version, e.Chain)
	}
	j.bindReportData(e.Report.ReportData[:])
	j.noInitData("CSV")
	if j.Log != nil {
		j.refuse("an event log is given, expected one only inside of CSV evidence in JSON (cc_eventlog)")
	}
}

// hygon finds root and chain among what is given.
func (j *judging) hygon() (root, chain []byte) {
	root, chain = j.Root, j.Chain
	for i, data := range j.Certificates {
		switch blocks, err := pemBlocks(data, ""); {
		case err != nil || len(blocks) != 1:
			j.refuse("certificate %d cannot be read, expected one of Hygon: %v", i+1, err)
		case len(blocks[0]) == csv.RootCertSize:
			root = blocks[0]
		case len(blocks[0]) == csv.RootCertSize+csv.CertSize:
			chain = blocks[0]
		default:
			j.refuse("certificate %d has %d bytes, expected %d (HRK) or %d (hsk_cek)", i+1, len(blocks[0]), csv.RootCertSize,
				csv.RootCertSize+csv.CertSize)
		}
	}
	return root, chain
}

func (j *judging) hygonRoot(given []byte) ([]byte, error) {
	own, err := verifier.HygonRoot()
	if err != nil {
		return nil, err
	}
	if given == nil {
		given = own
	}
	j.trusted(hygonRootName, sha256.Sum256(given), !bytes.Equal(given, own))
	return given, nil
}

// csvEvidence reads evidence. A bare report does not say of which version it is: the caller does, or the signature's usage, which
// is in the clear in version 2.
func (j *judging) csvEvidence(chain []byte) (*csv.Evidence, error) {
	if isJSON(j.Evidence) {
		e, err := csv.ParseEvidence(j.Evidence)
		if err == nil && chain != nil {
			e.Chain = chain
		}
		return e, err
	}
	magic, flags := "", uint32(0)
	if j.Magic != nil {
		magic = *j.Magic
	}
	if j.Flags != nil {
		flags = *j.Flags
	}
	if j.Magic != nil || j.Flags != nil {
		return csv.ParseRawEvidence(magic, flags, j.Evidence, chain)
	}
	extended, err := csv.ParseRawEvidence(extendedMagic, 1, j.Evidence, chain)
	if err == nil && extended.Report.SignatureUsage == csv.UsagePEK {
		return extended, nil
	}
	e, err := csv.ParseRawEvidence("", 0, j.Evidence, chain)
	if err != nil {
		return nil, fmt.Errorf("neither a report of version 1 nor of 2: %w", err)
	}
	return e, nil
}
