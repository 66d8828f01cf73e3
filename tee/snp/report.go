package snp

import (
	"encoding/binary"
	"fmt"
)

// Sizes of the report in bytes, and the range its signature covers: from its start to SignedSize.
const (
	ReportSize = 0x4a0
	SignedSize = 0x2a0

	signatureFieldSize = 72 // R and S each, little-endian
	scalarSize         = 48 // of which a P-384 scalar takes these
)

// Versions of the report that are known. Later ones keep the fields of earlier ones in place.
const (
	MinVersion = 2
	MaxVersion = 5
)

// Guest-requested reports have a VMPL up to MaxVMPL; the host's own have HostVMPL.
const (
	MaxVMPL  = 3
	HostVMPL = 0xffffffff
)

// AlgECDSAP384SHA384 is the value of SIGNATURE_ALGO that hardware uses.
const AlgECDSAP384SHA384 = 1

// FirmwareVersion is the version of the SEV firmware.
type FirmwareVersion struct {
	Major, Minor, Build uint8
}

// Report is an ATTESTATION_REPORT (evidence-layouts.md section 1.1). TCB versions stay bytes, since their form depends on
// the product line; DecodeTCB reads them.
type Report struct {
	Version         uint32
	GuestSVN        uint32
	Policy          Policy
	FamilyID        [16]byte
	ImageID         [16]byte
	VMPL            uint32
	SignatureAlgo   uint32
	CurrentTCB      [8]byte
	PlatformInfo    PlatformInfo
	KeyInfo         KeyInfo
	ReportData      [64]byte
	Measurement     [48]byte
	HostData        [32]byte
	IDKeyDigest     [48]byte
	AuthorKeyDigest [48]byte
	ReportID        [32]byte
	ReportIDMA      [32]byte
	ReportedTCB     [8]byte
	// CPUID* are of version 3 and later, with the extended parts of family and model added in.
	CPUIDFamily, CPUIDModel, CPUIDStepping uint8

	ChipID       [ChipIDSize]byte
	CommittedTCB [8]byte
	Current      FirmwareVersion
	Committed    FirmwareVersion
	LaunchTCB    [8]byte
	// Launch- and CurrentMitVector are of version 5 and later.
	LaunchMitVector, CurrentMitVector uint64

	// R and S are the signature, big-endian.
	R, S [scalarSize]byte
	// Signed is a copy of the bytes the signature covers.
	Signed [SignedSize]byte
}

// Parse reads a report in its binary form. Versions above MaxVersion are read by the layout of MaxVersion: whether to take
// them is the caller's choice. Reserved bytes of the signed part may have any value, those of the signature must be zero.
func Parse(b []byte) (*Report, error) {
	if len(b) != ReportSize {
		return nil, fmt.Errorf("parsing SNP report: %d bytes, expected %d", len(b), ReportSize)
	}
	le := binary.LittleEndian
	r := &Report{
		Version:          le.Uint32(b[0x000:]),
		GuestSVN:         le.Uint32(b[0x004:]),
		Policy:           Policy(le.Uint64(b[0x008:])),
		FamilyID:         [16]byte(b[0x010:]),
		ImageID:          [16]byte(b[0x020:]),
		VMPL:             le.Uint32(b[0x030:]),
		SignatureAlgo:    le.Uint32(b[0x034:]),
		CurrentTCB:       [8]byte(b[0x038:]),
		PlatformInfo:     PlatformInfo(le.Uint64(b[0x040:])),
		KeyInfo:          KeyInfo(le.Uint32(b[0x048:])),
		ReportData:       [64]byte(b[0x050:]),
		Measurement:      [48]byte(b[0x090:]),
		HostData:         [32]byte(b[0x0c0:]),
		IDKeyDigest:      [48]byte(b[0x0e0:]),
		AuthorKeyDigest:  [48]byte(b[0x110:]),
		ReportID:         [32]byte(b[0x140:]),
		ReportIDMA:       [32]byte(b[0x160:]),
		ReportedTCB:      [8]byte(b[0x180:]),
		CPUIDFamily:      b[0x188],
		CPUIDModel:       b[0x189],
		CPUIDStepping:    b[0x18a],
		ChipID:           [ChipIDSize]byte(b[0x1a0:]),
		CommittedTCB:     [8]byte(b[0x1e0:]),
		Current:          FirmwareVersion{Build: b[0x1e8], Minor: b[0x1e9], Major: b[0x1ea]},
		Committed:        FirmwareVersion{Build: b[0x1ec], Minor: b[0x1ed], Major: b[0x1ee]},
		LaunchTCB:        [8]byte(b[0x1f0:]),
		LaunchMitVector:  le.Uint64(b[0x1f8:]),
		CurrentMitVector: le.Uint64(b[0x200:]),
		Signed:           [SignedSize]byte(b),
	}
	if r.Version < MinVersion {
		return nil, fmt.Errorf("parsing SNP report: version is %d, expected %d to %d", r.Version, MinVersion, MaxVersion)
	}
	var err error
	if r.R, err = scalar("R", b[SignedSize:]); err != nil {
		return nil, err
	}
	if r.S, err = scalar("S", b[SignedSize+signatureFieldSize:]); err != nil {
		return nil, err
	}
	if i := nonZero(b[SignedSize+2*signatureFieldSize:]); i >= 0 {
		return nil, fmt.Errorf("parsing SNP report: reserved byte %#x of the signature is not zero", SignedSize+2*signatureFieldSize+i)
	}
	return r, nil
}

// scalar turns a little-endian field of 72 bytes into a big-endian number of 48.
func scalar(name string, field []byte) (out [scalarSize]byte, err error) {
	if nonZero(field[scalarSize:signatureFieldSize]) >= 0 {
		return out, fmt.Errorf("parsing SNP report: signature %s has more than %d significant bytes", name, scalarSize)
	}
	for i, v := range field[:scalarSize] {
		out[scalarSize-1-i] = v
	}
	return out, nil
}

// nonZero is the index of the first byte that is not zero, or -1.
func nonZero(b []byte) int {
	for i, v := range b {
		if v != 0 {
			return i
		}
	}
	return -1
}

// HasCPUID tells whether the report says which processor made it.
func (r *Report) HasCPUID() bool { return r.Version >= 3 }

// Line is the product line the report names. Version 2 names none.
func (r *Report) Line() (Line, error) {
	if !r.HasCPUID() {
		return 0, fmt.Errorf("an SNP report of version %d does not say which product line it is from", r.Version)
	}
	return LineOfCPU(r.CPUIDFamily, r.CPUIDModel)
}

// ChipIDMasked tells whether the chip's number was left out: the host asked for it, or it is all zero.
func (r *Report) ChipIDMasked() bool { return r.KeyInfo.MaskChipKey() || nonZero(r.ChipID[:]) < 0 }
