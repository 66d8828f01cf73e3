package snp

import (
	"fmt"
	"strings"
)

// Line is a product line of AMD: processors that share a certificate chain and a form of the TCB version.
type Line int

// The lines that have SEV-SNP. The zero value is none of them.
const (
	Milan Line = iota + 1
	Genoa      // Genoa, Bergamo and Siena: one chain for all
	Turin
)

// Lines lists the lines known here.
func Lines() []Line { return []Line{Milan, Genoa, Turin} }

// String is the name AMD's key server and certificates use: Milan, Genoa or Turin.
func (l Line) String() string {
	switch l {
	case Milan:
		return "Milan"
	case Genoa:
		return "Genoa"
	case Turin:
		return "Turin"
	}
	return fmt.Sprintf("Line(%d)", int(l))
}

// Known tells whether l is one of Lines.
func (l Line) Known() bool { return l >= Milan && l <= Turin }

// HasFMC tells whether the TCB version of the line has an FMC part.
func (l Line) HasFMC() bool { return l == Turin }

// ChipIDSize is how many bytes of CHIP_ID name the chip: certificates and the key server use these, the rest is zero.
func (l Line) ChipIDSize() int {
	if l == Turin {
		return 8
	}
	return ChipIDSize
}

// ChipIDSize is the size of the field CHIP_ID in bytes.
const ChipIDSize = 64

// ParseLine reads the name of a line.
func ParseLine(name string) (Line, error) {
	for _, l := range Lines() {
		if l.String() == name {
			return l, nil
		}
	}
	return 0, fmt.Errorf("product line is %.32q, expected Milan, Genoa or Turin", name)
}

// LineOfCPU returns the line of a processor by its CPUID family and model, both with the extended part added in.
func LineOfCPU(family, model uint8) (Line, error) {
	switch {
	case family == 0x19 && model <= 0x0f:
		return Milan, nil
	case family == 0x19 && (model >= 0x10 && model <= 0x1f || model >= 0xa0 && model <= 0xaf):
		return Genoa, nil
	case family == 0x1a && model <= 0x11:
		return Turin, nil
	}
	return 0, fmt.Errorf("CPUID family %#02x model %#02x is of no known product line (Milan, Genoa, Turin)", family, model)
}

// LineOfIssuer returns the line that a leaf's issuer common name speaks of, SEV-<line> or SEV-VLEK-<line>. It is a hint for
// choosing the chain; only the chain proves it.
func LineOfIssuer(commonName string) (line Line, vlek bool, err error) {
	name, ok := strings.CutPrefix(commonName, "SEV-")
	if !ok {
		return 0, false, fmt.Errorf("issuer is %.48q, expected SEV-<line> or SEV-VLEK-<line>", commonName)
	}
	name, vlek = strings.CutPrefix(name, "VLEK-")
	line, err = ParseLine(name)
	if err != nil {
		return 0, false, fmt.Errorf("issuer is %.48q: %w", commonName, err)
	}
	return line, vlek, nil
}

// TCB is a TCB version: the security patch level of each part of the platform's firmware.
type TCB struct {
	FMC        uint8 // Turin only, else zero
	BootLoader uint8
	TEE        uint8
	SNP        uint8
	Microcode  uint8
}

// DecodeTCB reads a TCB version in the form of a line. Reserved bytes are not looked at.
func DecodeTCB(line Line, b [8]byte) TCB {
	if line == Turin {
		return TCB{FMC: b[0], BootLoader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
	}
	return TCB{BootLoader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
}

// Encode is the TCB version as bytes in the form of a line, reserved bytes zero.
func (t TCB) Encode(line Line) [8]byte {
	if line == Turin {
		return [8]byte{t.FMC, t.BootLoader, t.TEE, t.SNP, 0, 0, 0, t.Microcode}
	}
	return [8]byte{t.BootLoader, t.TEE, 0, 0, 0, 0, t.SNP, t.Microcode}
}

// String lists the parts.
func (t TCB) String() string {
	return fmt.Sprintf("fmc %d, boot loader %d, tee %d, snp %d, microcode %d", t.FMC, t.BootLoader, t.TEE, t.SNP, t.Microcode)
}
