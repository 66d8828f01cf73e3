package nvgpu

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// FieldType tells what an opaque field says.
type FieldType uint16

// Types of opaque fields. The numbers 22 to 26 are those of GPUs and switches together: 22 lists the switches a GPU is
// wired to, or is a switch's own identity.
const (
	CertIssuerName             FieldType = 1
	CertAuthorityKeyIdentifier FieldType = 2
	DriverVersion              FieldType = 3
	GPUInfo                    FieldType = 4
	SKU                        FieldType = 5
	VBIOSVersion               FieldType = 6
	ManufacturerID             FieldType = 7
	TamperDetection            FieldType = 8
	SMC                        FieldType = 9
	VPR                        FieldType = 10
	NVDEC0Status               FieldType = 11
	MeasurementCount           FieldType = 12
	CPRInfo                    FieldType = 13
	BoardID                    FieldType = 14
	ChipSKU                    FieldType = 15
	ChipSKUMod                 FieldType = 16
	Project                    FieldType = 17
	ProjectSKU                 FieldType = 18
	ProjectSKUMod              FieldType = 19
	FWID                       FieldType = 20
	ProtectedPCIeStatus        FieldType = 21
	SwitchPDI                  FieldType = 22
	FloorsweptPorts            FieldType = 23
	PositionID                 FieldType = 24
	LockSwitchStatus           FieldType = 25
	SwitchGPUPDIs              FieldType = 26
	SwitchPorts                FieldType = 27
	GPULinkConn                FieldType = 32
	SysEnableStatus            FieldType = 33
	OpaqueDataVersion          FieldType = 34
	ChipInfo                   FieldType = 35
	FeatureFlag                FieldType = 36
)

var fieldNames = map[FieldType]string{
	CertIssuerName: "cert_issuer_name", CertAuthorityKeyIdentifier: "cert_authority_key_identifier",
	DriverVersion: "driver_version", GPUInfo: "gpu_info", SKU: "id_sku", VBIOSVersion: "vbios_version",
	ManufacturerID: "manufacturer_id", TamperDetection: "tamper_detection", SMC: "smc", VPR: "vpr",
	NVDEC0Status: "nvdec0_status", MeasurementCount: "measurement_count", CPRInfo: "cpr_info", BoardID: "board_id",
	ChipSKU: "chip_sku", ChipSKUMod: "chip_sku_mod", Project: "project", ProjectSKU: "project_sku",
	ProjectSKUMod: "project_sku_mod", FWID: "fwid", ProtectedPCIeStatus: "protected_pcie_status", SwitchPDI: "switch_pdi",
	FloorsweptPorts: "floorswept_ports", PositionID: "position_id", LockSwitchStatus: "lock_switch_status",
	SwitchGPUPDIs: "switch_gpu_pdis", SwitchPorts: "switch_ports", GPULinkConn: "gpu_link_conn",
	SysEnableStatus: "sys_enable_status", OpaqueDataVersion: "opaque_data_version", ChipInfo: "chip_info",
	FeatureFlag: "feature_flag",
}

// String is the name as claims have it; a type nobody has named yet is opaque_<number>.
func (t FieldType) String() string {
	if name, ok := fieldNames[t]; ok {
		return name
	}
	return fmt.Sprintf("opaque_%d", uint16(t))
}

// Values of NVDEC0Status and ProtectedPCIeStatus.
const (
	StatusOn  = 0xAA
	StatusOff = 0x55
)

// pdiSize is the size of a per-device identity in bytes.
const pdiSize = 8

// Field is one opaque field.
type Field struct {
	Type  FieldType
	Value []byte
}

// Field returns the value of an opaque field.
func (r *Report) Field(t FieldType) ([]byte, bool) {
	for _, f := range r.Opaque {
		if f.Type == t {
			return f.Value, true
		}
	}
	return nil, false
}

// Text returns a field of ASCII text, without the NUL bytes that fill it up.
func (r *Report) Text(t FieldType) string {
	v, _ := r.Field(t)
	return strings.TrimRight(string(v), "\x00")
}

// PDIs returns a field that is a list of per-device identities.
func (r *Report) PDIs(t FieldType) ([][]byte, error) {
	v, ok := r.Field(t)
	if !ok {
		return nil, nil
	}
	if len(v)%pdiSize != 0 {
		return nil, fmt.Errorf("%s has %d bytes, want a multiple of %d", t, len(v), pdiSize)
	}
	out := make([][]byte, 0, len(v)/pdiSize)
	for ; len(v) > 0; v = v[pdiSize:] {
		out = append(out, v[:pdiSize])
	}
	return out, nil
}

// VBIOSVersion returns the five parts of the version, in the order people write them. GPUs send four bytes little-endian
// and a fifth; switches send the text itself.
func (r *Report) VBIOSVersion(isSwitch bool) (string, error) {
	v, ok := r.Field(VBIOSVersion)
	switch {
	case !ok:
		return "", fmt.Errorf("%s is missing", VBIOSVersion)
	case isSwitch:
		return r.Text(VBIOSVersion), nil
	case len(v) != 8:
		return "", fmt.Errorf("%s has %d bytes, want 8", VBIOSVersion, len(v))
	}
	return fmt.Sprintf("%02x.%02x.%02x.%02x.%02x", v[3], v[2], v[1], v[0], v[4]), nil
}

func parseFields(b []byte) ([]Field, error) {
	var out []Field
	seen := map[FieldType]bool{}
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, fmt.Errorf("%d bytes are left, a field takes at least 4", len(b))
		}
		t, size := FieldType(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
		b = b[4:]
		switch {
		case size > len(b):
			return nil, fmt.Errorf("%s has %d bytes, %d are left", t, size, len(b))
		case seen[t]:
			return nil, fmt.Errorf("%s occurs twice", t)
		}
		seen[t] = true
		out = append(out, Field{Type: t, Value: b[:size]})
		b = b[size:]
	}
	return out, nil
}
