package tpm

import "fmt"

const (
	attestMagic  = 0xff544347 // TPM_GENERATED_VALUE: only the TPM itself signs data that starts so
	attestQuote  = 0x8018     // TPM_ST_ATTEST_QUOTE
	maxName      = 2 + 64     // name algorithm and the longest digest
	maxExtraData = 2 + 64     // TPM2B_DATA: sizeof(TPMT_HA)
	maxBanks     = 16
	maxPCRBytes  = 4 // PCR 0 to 31
)

// PCRSelection names registers of one bank, in ascending order.
type PCRSelection struct {
	Bank Alg
	PCRs []int
}

// Attest is the TPMS_ATTEST structure of a quote.
type Attest struct {
	QualifiedSigner []byte
	ExtraData       []byte // the nonce the caller asked to have signed
	Clock           uint64
	ResetCount      uint32
	RestartCount    uint32
	Safe            bool
	FirmwareVersion uint64
	Selections      []PCRSelection
	PCRDigest       []byte
}

// ParseAttest reads a marshalled TPMS_ATTEST and accepts quotes only.
func ParseAttest(b []byte) (*Attest, error) {
	r := newReader("TPMS_ATTEST", b)
	if magic := r.u32("magic"); r.err == nil && magic != attestMagic {
		r.fail("magic is %08x, expected %08x: not made by a TPM", magic, uint32(attestMagic))
	}
	if typ := r.u16("type"); r.err == nil && typ != attestQuote {
		r.fail("type is %04x, expected %04x (quote)", typ, attestQuote)
	}
	a := &Attest{
		QualifiedSigner: r.sized("qualified signer", maxName),
		ExtraData:       r.sized("extra data", maxExtraData),
		Clock:           r.u64("clock"),
		ResetCount:      r.u32("reset count"),
		RestartCount:    r.u32("restart count"),
	}
	switch safe := r.u8("safe"); safe {
	case 0, 1:
		a.Safe = safe == 1
	default:
		r.fail("safe is %d, expected 0 or 1", safe)
	}
	a.FirmwareVersion = r.u64("firmware version")
	a.Selections = r.selections()
	a.PCRDigest = r.sized("PCR digest", 64)
	if err := r.end(); err != nil {
		return nil, err
	}
	return a, nil
}

func (r *reader) selections() []PCRSelection {
	n := r.u32("selection count")
	if r.err == nil && n > maxBanks {
		r.fail("%d PCR selections, more than %d", n, maxBanks)
	}
	if r.err != nil {
		return nil
	}
	out := make([]PCRSelection, 0, n)
	for i := range n {
		field := fmt.Sprintf("selection %d", i)
		s := PCRSelection{Bank: Alg(r.u16(field + " bank"))}
		size := int(r.u8(field + " size"))
		if r.err == nil && size > maxPCRBytes {
			r.fail("%s bitmap is %d bytes, more than %d", field, size, maxPCRBytes)
		}
		for j, bits := range r.take(field+" bitmap", size) {
			for bit := range 8 {
				if bits&(1<<bit) != 0 {
					s.PCRs = append(s.PCRs, 8*j+bit)
				}
			}
		}
		if r.err != nil {
			return nil
		}
		out = append(out, s)
	}
	return out
}
