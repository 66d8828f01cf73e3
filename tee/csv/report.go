package csv

import (
	"encoding/binary"
	"fmt"
)

// Sizes of reports, in bytes. Guests pad them to a page.
const (
	PageSize     = 4096
	ReportV1Size = 2548
	ReportV2Size = 3380

	serialSize   = 64
	reservedTail = 32
	macSize      = 32
)

// Policy is what the owner of a guest demanded at launch.
type Policy uint32

// NoDebug is set when the guest cannot be debugged; the others are named likewise.
func (p Policy) NoDebug() bool { return p&(1<<0) != 0 }

// NoKeySharing is bit 1.
func (p Policy) NoKeySharing() bool { return p&(1<<1) != 0 }

// EncryptedState is bit 2.
func (p Policy) EncryptedState() bool { return p&(1<<2) != 0 }

// NoSend is bit 3: the guest cannot be migrated.
func (p Policy) NoSend() bool { return p&(1<<3) != 0 }

// Domain is bit 4.
func (p Policy) Domain() bool { return p&(1<<4) != 0 }

// CSV is bit 5.
func (p Policy) CSV() bool { return p&(1<<5) != 0 }

// CSV3 is bit 6: the third generation, with private memory.
func (p Policy) CSV3() bool { return p&(1<<6) != 0 }

// ASIDReuse is bit 7.
func (p Policy) ASIDReuse() bool { return p&(1<<7) != 0 }

// HSKVersion, CEKVersion, APIMajor and APIMinor are the least versions the guest may run with.
func (p Policy) HSKVersion() uint8 { return uint8(p >> 8 & 0xf) }

// CEKVersion is bits 15:12.
func (p Policy) CEKVersion() uint8 { return uint8(p >> 12 & 0xf) }

// APIMajor is bits 23:16.
func (p Policy) APIMajor() uint8 { return uint8(p >> 16) }

// APIMinor is bits 31:24.
func (p Policy) APIMinor() uint8 { return uint8(p >> 24) }

// Report is an attestation report with its mask taken off.
type Report struct {
	Version             int // 1 or 2
	UserPublicKeyDigest [32]byte
	VMID, VMVersion     [16]byte
	ReportData          [64]byte
	MNonce              [16]byte
	Measure             [32]byte // SM3 of the launched memory
	Policy              Policy
	SignatureUsage      Usage
	SignatureAlgorithm  uint32

	ANonce uint32 // version 1: the mask. No signature covers it.

	Build       uint32 // version 2, as are all below
	RTMRVersion uint16
	Reserved0   [14]byte
	RTMR        [5][32]byte
	Reserved1   [656]byte

	Signed    []byte // what the signature is over, as stored
	Signature Signature
	Signer    Signer
}

// Signer is the tail of a report, with its mask taken off: who made it. No signature covers it.
type Signer struct {
	PEK    []byte // a certificate, not parsed
	Serial string // of the chip
	MAC    [macSize]byte
	MACed  []byte // what the MAC is over: HMAC-SM3 with MNonce, so no proof of anything; nil when it was changed since
}

// ParseReport reads a report: extended is whether it is of version 2. A page of which the report fills the beginning is
// read as well. The tail of a version 1 report is masked as the firmware returns it and not in CoCo evidence; either is read.
func ParseReport(b []byte, extended bool) (*Report, error) {
	size := ReportV1Size
	if extended {
		size = ReportV2Size
	}
	if len(b) < size || len(b) > PageSize {
		return nil, fmt.Errorf("parsing CSV report: %d bytes, expected %d to %d", len(b), size, PageSize)
	}
	r := &Report{Version: 1}
	head, tail := b[:188], b[336:ReportV1Size]
	r.Signed = b[:180]
	signature := b[192:336]
	if extended {
		r.Version, r.Signed, signature, tail = 2, b[:1024], b[1024:1168], b[1168:ReportV2Size]
		r.Build, r.RTMRVersion = u32(b, 188), binary.LittleEndian.Uint16(b[192:])
		copy(r.Reserved0[:], b[194:208])
		for i := range r.RTMR {
			copy(r.RTMR[i][:], b[208+32*i:])
		}
		copy(r.Reserved1[:], b[368:1024])
	} else {
		r.ANonce = u32(b, 188)
		head = unmask(head, b[188:192])
	}
	copy(r.UserPublicKeyDigest[:], head)
	copy(r.VMID[:], head[32:])
	copy(r.VMVersion[:], head[48:])
	copy(r.ReportData[:], head[64:])
	copy(r.MNonce[:], head[128:])
	copy(r.Measure[:], head[144:])
	r.Policy = Policy(u32(head, 176))
	r.SignatureUsage, r.SignatureAlgorithm = Usage(u32(head, 180)), u32(head, 184)
	var err error
	if r.Signature, err = parseSignature(signature); err != nil {
		return nil, fmt.Errorf("parsing CSV report: %w", err)
	}
	if r.Signer, err = parseSigner(tail, b[188:192], extended); err != nil {
		return nil, fmt.Errorf("parsing CSV report: %w", err)
	}
	return r, nil
}

func parseSigner(tail, mask []byte, extended bool) (Signer, error) {
	stored := tail[:CertSize+serialSize+reservedTail]
	plain := stored
	var s Signer
	switch {
	case extended:
		s.MACed = stored
	case Usage(u32(stored, 8)) == UsagePEK: // the guest unmasked it after checking
	default:
		plain, s.MACed = unmask(stored, mask), stored
	}
	s.PEK = plain[:CertSize:CertSize]
	var err error
	if s.Serial, err = ParseSerial(plain[CertSize : CertSize+serialSize]); err != nil {
		return s, err
	}
	copy(s.MAC[:], tail[len(stored):])
	return s, nil
}

// ParseSerial reads the serial number of a chip: letters and digits, padded with zero bytes. It becomes part of file names
// and addresses, so that nothing else may be in it.
func ParseSerial(b []byte) (string, error) {
	n := len(b)
	for n > 0 && b[n-1] == 0 {
		n--
	}
	if n == 0 || n > serialSize {
		return "", fmt.Errorf("serial number of %d bytes, expected 1 to %d", n, serialSize)
	}
	for _, c := range b[:n] {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return "", fmt.Errorf("serial number %.64q has more than letters and digits", b[:n])
		}
	}
	return string(b[:n]), nil
}

// unmask takes the four bytes of mask off b. It is its own inverse.
func unmask(b, mask []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[i] = b[i] ^ mask[i%4]
	}
	return out
}
