package quote

import "fmt"

// Types of certification data.
const (
	certPEMChain = 5
	certQEReport = 6
)

// Certification says which key certified the quoting enclave.
type Certification struct {
	// Type is 5 for a PEM chain; 1 to 3 name the platform by its PPID, 4 holds the leaf alone, and need a lookup elsewhere.
	Type uint16
	Data []byte
}

// PEMChain returns the chain of PCK certificates, or false when the data is of another type.
func (c Certification) PEMChain() ([]byte, bool) { return c.Data, c.Type == certPEMChain }

// String names the type.
func (c Certification) String() string {
	names := [...]string{1: "plain PPID", 2: "PPID encrypted with RSA-2048", 3: "PPID encrypted with RSA-3072",
		4: "PCK leaf certificate", 5: "PCK certificate chain", 6: "QE report certification data", 7: "platform manifest"}
	if int(c.Type) < len(names) && names[c.Type] != "" {
		return fmt.Sprintf("%d (%s)", c.Type, names[c.Type])
	}
	return fmt.Sprintf("%d (unknown)", c.Type)
}

func (q *Quote) signatureData(b []byte) error {
	r := &reader{buf: b}
	q.Signature = r.take("quote signature", signatureSize)
	q.AttestationKey = r.take("attestation key", keySize)
	if q.Header.VersionNum >= 4 {
		// Since version 4 what follows is wrapped once more.
		kind := r.u16("certification data type")
		if r.err == nil && kind != certQEReport {
			return fmt.Errorf("outer certification data type is %v, expected %d", Certification{Type: kind}, certQEReport)
		}
		inner := r.take("QE report certification data", r.u32("certification data size"))
		if err := r.end("the signature data"); err != nil {
			return err
		}
		r = &reader{buf: inner}
	}
	report := r.take("QE report", EnclaveSize)
	q.QESignature = r.take("QE report signature", signatureSize)
	q.QEAuth = r.take("QE authentication data", uint32(r.u16("QE authentication data size")))
	q.Certification.Type = r.u16("inner certification data type")
	q.Certification.Data = r.take("inner certification data", r.u32("inner certification data size"))
	if err := r.end("the signature data"); err != nil {
		return err
	}
	q.QEReport = *newEnclaveReport(report)
	return nil
}
