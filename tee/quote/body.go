package quote

import "encoding/binary"

// EnclaveReport is an SGX report body: that of an application enclave in an SGX quote, and that of the quoting enclave in
// every quote. Fields are the bytes as stored.
type EnclaveReport struct {
	Raw          []byte // 384
	CPUSVN       []byte // 16
	MiscSelect   []byte // 4
	Reserved1    []byte // 12
	ISVExtProdID []byte // 16
	Flags        []byte // 8, the first half of ATTRIBUTES
	XFRM         []byte // 8, the second half
	Attributes   []byte // 16
	MREnclave    []byte // 32
	Reserved2    []byte // 32
	MRSigner     []byte // 32
	Reserved3    []byte // 32
	ConfigID     []byte // 64
	ISVProdID    []byte // 2
	ISVSVN       []byte // 2
	ConfigSVN    []byte // 2
	Reserved4    []byte // 42
	ISVFamilyID  []byte // 16
	ReportData   []byte // 64
}

func newEnclaveReport(b []byte) *EnclaveReport {
	return &EnclaveReport{Raw: b,
		CPUSVN: b[0:16], MiscSelect: b[16:20], Reserved1: b[20:32], ISVExtProdID: b[32:48],
		Flags: b[48:56], XFRM: b[56:64], Attributes: b[48:64],
		MREnclave: b[64:96], Reserved2: b[96:128], MRSigner: b[128:160], Reserved3: b[160:192],
		ConfigID: b[192:256], ISVProdID: b[256:258], ISVSVN: b[258:260], ConfigSVN: b[260:262],
		Reserved4: b[262:304], ISVFamilyID: b[304:320], ReportData: b[320:384],
	}
}

// SVN is ISVSVN as a number.
func (r *EnclaveReport) SVN() uint16 { return binary.LittleEndian.Uint16(r.ISVSVN) }

// ProdID is ISVPRODID as a number.
func (r *EnclaveReport) ProdID() uint16 { return binary.LittleEndian.Uint16(r.ISVProdID) }

// Debug reports whether the enclave's memory can be read from outside.
func (r *EnclaveReport) Debug() bool { return r.Flags[0]&2 != 0 }

// TDReport is the body of a TDX quote. Fields are the bytes as stored.
type TDReport struct {
	Raw            []byte // 584, or 648 in TDX 1.5
	TCBSVN         []byte // 16
	MRSEAM         []byte // 48
	MRSignerSEAM   []byte // 48
	SEAMAttributes []byte // 8
	TDAttributes   []byte // 8
	XFAM           []byte // 8
	MRTD           []byte // 48
	MRConfigID     []byte // 48
	MROwner        []byte // 48
	MROwnerConfig  []byte // 48
	RTMR           [4][]byte
	ReportData     []byte // 64
	// TCBSVN2 (16) and MRServiceTD (48) exist in TDX 1.5 only and are nil before. TCBSVN is of the moment the TD was
	// launched, TCBSVN2 of the moment the quote was made.
	TCBSVN2, MRServiceTD []byte
}

func newTDReport(b []byte) *TDReport {
	t := &TDReport{Raw: b,
		TCBSVN: b[0:16], MRSEAM: b[16:64], MRSignerSEAM: b[64:112], SEAMAttributes: b[112:120], TDAttributes: b[120:128],
		XFAM: b[128:136], MRTD: b[136:184], MRConfigID: b[184:232], MROwner: b[232:280], MROwnerConfig: b[280:328],
		RTMR:       [4][]byte{b[328:376], b[376:424], b[424:472], b[472:520]},
		ReportData: b[520:584],
	}
	if len(b) == TD15Size {
		t.TCBSVN2, t.MRServiceTD = b[584:600], b[600:648]
	}
	return t
}

// Attribute bits of a TD.
const (
	AttrDebug         = 0
	AttrSEPTVEDisable = 28
	AttrMigratable    = 29
	AttrPKS           = 30
	AttrKeyLocker     = 31
	AttrPerfmon       = 63
)

// Attribute reports whether one bit of TDATTRIBUTES is set.
func (t *TDReport) Attribute(bit int) bool {
	return binary.LittleEndian.Uint64(t.TDAttributes)>>bit&1 != 0
}
