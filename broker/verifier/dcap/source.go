package dcap

import "context"

// Values of the arguments ca and tee of Source.Collateral.
const (
	CAPlatform  = "platform"
	CAProcessor = "processor"
	TEETDX      = "tdx"
	TEESGX      = "sgx"
)

// Collateral is what Intel publishes about one kind of platform. A Source delivers it as it was published: nothing in it
// is trusted before Verify has checked its signatures, so a Source need not check anything.
type Collateral struct {
	// TCBInfo is the whole JSON document {"tcbInfo":{…},"signature":"…"}, byte for byte as published: the signature is over
	// bytes, so that reading and writing the JSON anew would break it.
	TCBInfo []byte
	// TCBInfoIssuerChain is PEM: the TCB signing certificate, then the root.
	TCBInfoIssuerChain []byte
	// QEIdentity is the whole JSON document {"enclaveIdentity":{…},"signature":"…"}, byte for byte as published. For TDX it
	// is that of the TD quoting enclave.
	QEIdentity []byte
	// QEIdentityIssuerChain is PEM: the TCB signing certificate, then the root.
	QEIdentityIssuerChain []byte
	// PCKCRL is the revocation list of the PCK Platform or Processor CA, DER or PEM.
	PCKCRL []byte
	// PCKCRLIssuerChain is PEM: the PCK CA, then the root.
	PCKCRLIssuerChain []byte
	// RootCRL is the revocation list of the root, DER or PEM (the hexadecimal text of a PCCS has to be decoded before).
	RootCRL []byte
}

// Source delivers collateral: Intel's service, a PCCS or a file. Its answers may be cached; the same *Collateral may be
// returned again and must not be changed afterwards.
type Source interface {
	// Collateral returns what is published for platforms of fmspc (12 hexadecimal digits, upper case), whose PCK certificate
	// was issued by ca (CAPlatform or CAProcessor), for quotes of tee (TEETDX or TEESGX).
	Collateral(ctx context.Context, fmspc, ca, tee string) (*Collateral, error)
}
