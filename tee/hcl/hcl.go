// Package hcl reads the report that the paravisor of an Azure confidential VM (the host compatibility layer) leaves in its
// virtual TPM, at NV index 0x01400001: a header, the hardware's report, and the runtime data whose hash the hardware's
// report carries. Layout: evidence-layouts.md section 5; all integers are little-endian, all offsets and sizes in bytes.
//
// It reads; that the parts belong together is checked in broker/verifier/azurevtpm.
package hcl

import (
	"encoding/binary"
	"fmt"
)

const (
	headerSize   = 32
	hardwareSize = 1184
	dataOffset   = headerSize + hardwareSize // of the request data
	dataHeader   = 20
	runtimeStart = dataOffset + dataHeader

	maxReport = 64 << 10

	tdReportSize       = 1024
	tdReportType       = 0x81
	tdReportDataOffset = 128
)

// HardwareType is what kind of hardware report is inside.
type HardwareType uint32

// Kinds of hardware reports.
const (
	SNP HardwareType = 2
	TDX HardwareType = 4
)

// String names the hardware.
func (t HardwareType) String() string {
	switch t {
	case SNP:
		return "SNP"
	case TDX:
		return "TDX"
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// HashSHA256 is the one value of HashType seen; 2 and 3 stand for SHA-384 and SHA-512.
const HashSHA256 = 1

// Report is an HCL report. Its slices share the memory of what was parsed.
type Report struct {
	Version     uint32
	RequestType uint32
	Status      uint32
	Type        HardwareType
	HashType    uint32
	// RuntimeData is the JSON text that the hardware's report data is the hash of.
	RuntimeData []byte

	hardware []byte
}

// Parse reads an HCL report. Bytes after the runtime data are padding and not looked at.
func Parse(b []byte) (*Report, error) {
	if len(b) < runtimeStart || len(b) > maxReport {
		return nil, fmt.Errorf("parsing HCL report: %d bytes, expected %d to %d", len(b), runtimeStart, maxReport)
	}
	if string(b[:4]) != "HCLA" {
		return nil, fmt.Errorf("parsing HCL report: signature is %q, expected \"HCLA\"", b[:4])
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	r := &Report{
		Version: u32(4), RequestType: u32(12), Status: u32(16),
		Type: HardwareType(u32(dataOffset + 8)), HashType: u32(dataOffset + 12),
		hardware: b[headerSize : headerSize+hardwareSize : headerSize+hardwareSize],
	}
	size := uint64(u32(dataOffset + 16))
	if left := uint64(len(b) - runtimeStart); size > left {
		return nil, fmt.Errorf("parsing HCL report: runtime data has %d bytes, %d are left", size, left)
	}
	if got := uint64(u32(dataOffset)); got != dataHeader+size {
		return nil, fmt.Errorf("parsing HCL report: data size is %d, expected %d with the runtime data", got, dataHeader+size)
	}
	if got := uint64(u32(8)); got != runtimeStart+size {
		return nil, fmt.Errorf("parsing HCL report: report size is %d, expected %d with the runtime data", got, runtimeStart+size)
	}
	end := runtimeStart + int(size)
	r.RuntimeData = b[runtimeStart:end:end]
	return r, nil
}

// SNPReport is the report of the processor, in the form package tee/snp reads.
func (r *Report) SNPReport() ([]byte, error) {
	if r.Type != SNP {
		return nil, fmt.Errorf("HCL report is of %s hardware, expected %s", r.Type, SNP)
	}
	return r.hardware, nil
}

// TDReportData is the report data of the TDREPORT. Nothing in a TDREPORT is authentic on another machine: it is only good
// for comparing with that of the TD quote.
func (r *Report) TDReportData() ([64]byte, error) {
	if r.Type != TDX {
		return [64]byte{}, fmt.Errorf("HCL report is of %s hardware, expected %s", r.Type, TDX)
	}
	td := r.hardware[:tdReportSize]
	if td[0] != tdReportType {
		return [64]byte{}, fmt.Errorf("TDREPORT in the HCL report has type %#x, expected %#x", td[0], tdReportType)
	}
	return [64]byte(td[tdReportDataOffset:]), nil
}
