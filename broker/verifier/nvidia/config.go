package nvidia

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/cloister/cloister/tee/nvgpu"
)

// configClaims are the opaque fields in the forms that upstream gives them.
func configClaims(r *nvgpu.Report, vbios string) (map[string]any, error) {
	out := map[string]any{}
	for _, f := range r.Opaque {
		v, err := configValue(r, f, vbios)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", f.Type, err)
		}
		out[f.Type.String()] = v
	}
	return out, nil
}

func configValue(r *nvgpu.Report, f nvgpu.Field, vbios string) (any, error) {
	switch f.Type {
	case nvgpu.DriverVersion, nvgpu.ChipSKU, nvgpu.ChipSKUMod, nvgpu.NVDEC0Status, nvgpu.Project, nvgpu.ProjectSKU,
		nvgpu.ProtectedPCIeStatus, nvgpu.ChipInfo:
		// The two status bytes are text upstream: 55h is "U", AAh is no UTF-8 and comes out as the replacement character.
		return strings.ToValidUTF8(r.Text(f.Type), "\uFFFD"), nil
	case nvgpu.VBIOSVersion:
		return strings.ToValidUTF8(vbios, "\uFFFD"), nil
	case nvgpu.MeasurementCount:
		return counts(f.Value)
	case nvgpu.SwitchPDI, nvgpu.SwitchGPUPDIs:
		pdis, err := r.PDIs(f.Type)
		if err != nil {
			return nil, err
		}
		list := make([]any, 0, len(pdis))
		for _, p := range pdis {
			list = append(list, hex.EncodeToString(p))
		}
		return list, nil
	case nvgpu.OpaqueDataVersion:
		return number(f.Value)
	case nvgpu.FeatureFlag:
		n, err := number(f.Value)
		if err != nil {
			return nil, err
		}
		return feature(n), nil
	}
	return hex.EncodeToString(f.Value), nil
}

// counts are how often each measurement was extended, u32 little-endian from index 1.
func counts(b []byte) (map[string]any, error) {
	if len(b)%4 != 0 || len(b) > 4*255 {
		return nil, fmt.Errorf("it has %d bytes, want 4 for each of at most 255 measurements", len(b))
	}
	out := map[string]any{}
	for i := 0; i < len(b); i += 4 {
		out[strconv.Itoa(i/4+1)] = int64(binary.LittleEndian.Uint32(b[i:]))
	}
	return out, nil
}

func number(b []byte) (int64, error) {
	if len(b) > 8 {
		return 0, fmt.Errorf("it has %d bytes, want at most 8", len(b))
	}
	var padded [8]byte
	copy(padded[:], b)
	n := binary.LittleEndian.Uint64(padded[:])
	if n > 1<<53 {
		return 0, fmt.Errorf("it is %d, which no JSON reader keeps exactly", n)
	}
	return int64(n), nil
}

func feature(n int64) string {
	switch n {
	case 0:
		return "SPT"
	case 1:
		return "MPT"
	case 2:
		return "PPCIE"
	}
	return "unknown"
}
