package refvalue

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
)

// Machine is what of the virtual machine ends up in measurements.
type Machine struct {
	VCPUs     int
	MaxVCPUs  int // 0: same as VCPUs
	MemoryMiB int
	// S3 is QEMU's sleep-to-memory support; the host turns it off
	// (-global ICH9-LPC.disable_s3=1), which also keeps the size of the
	// memory out of PCR 0.
	S3 bool
	// AddressBits is the width of physical addresses the firmware settles on.
	// 0 is 40, which is what QEMU's own CPU emulation has.
	AddressBits int
}

// String names a machine in explanations.
func (m Machine) String() string {
	s := fmt.Sprintf("%d vCPU, %d MiB", m.VCPUs, m.MemoryMiB)
	if m.S3 {
		s += ", S3"
	}
	return s
}

// defaultAddressBits is the address width of QEMU's own CPUs.
const defaultAddressBits = 40

// untrustedAddressBits is what OVMF falls back to when it does not believe
// the CPU: an Intel one that says 40 bits.
const untrustedAddressBits = 36

func (m Machine) validate() error {
	var errs []error
	if m.VCPUs < 1 || m.VCPUs > 255 {
		errs = append(errs, fmt.Errorf("%d vCPUs, expected 1 to 255", m.VCPUs))
	}
	if m.MaxVCPUs != 0 && (m.MaxVCPUs < m.VCPUs || m.MaxVCPUs > 255) {
		errs = append(errs, fmt.Errorf("at most %d vCPUs with %d at start", m.MaxVCPUs, m.VCPUs))
	}
	// Above 28 GiB the firmware lays out its address space otherwise.
	if m.MemoryMiB < 128 || m.MemoryMiB > 28<<10 {
		errs = append(errs, fmt.Errorf("%d MiB of memory, expected 128 to 28672", m.MemoryMiB))
	}
	if m.AddressBits != 0 && (m.AddressBits < untrustedAddressBits || m.AddressBits > 47) {
		errs = append(errs, fmt.Errorf("%d address bits, expected 36 to 47", m.AddressBits))
	}
	return errors.Join(errs...)
}

// lowMemory is the memory below 4 GiB of a q35 machine.
func (m Machine) lowMemory() uint64 {
	size := uint64(m.MemoryMiB) << 20
	if size >= 0xb0000000 {
		return 0x80000000
	}
	return size
}

// runInPlace returns the PEI volume as it is in memory when it is measured.
// Its modules run where they were unpacked to, and by then one of them has
// filled in its record of the platform (EFI_HOB_PLATFORM_INFO in edk2's
// OvmfPkg/Include/Library/PlatformInitLib.h, packed, stable release 202211).
// All of the record is zero in the file.
func runInPlace(fv []byte, m Machine) ([]byte, error) {
	data, err := platformData(fv)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(fv)
	le := binary.LittleEndian
	rec := out[data.at : data.at+data.size]
	if len(rec) != layoutDataSize {
		return nil, fmt.Errorf("the data of the platform module has %d bytes, expected %d: an OVMF release whose layout is not known", len(rec), layoutDataSize)
	}
	if !allZero(rec[layoutRecord : layoutRecord+layoutSize]) {
		return nil, errors.New("the platform record is not empty in the file: an OVMF release whose layout is not known")
	}
	r := rec[layoutRecord:]

	bits := m.AddressBits
	if bits == 0 {
		bits = defaultAddressBits
	}
	maxCPUs := m.MaxVCPUs
	if maxCPUs == 0 {
		maxCPUs = m.VCPUs
	}
	le.PutUint16(r[offHostBridge:], 0x29c0) // Q35
	le.PutUint64(r[offFirstNonAddress:], 64<<30)
	r[offAddressWidth] = byte(bits)
	le.PutUint32(r[offUncached:], 0x80000000)
	// The window for 64-bit PCI is the last eighth of the address space.
	window := uint64(1) << (bits - 3)
	base := uint64(1)<<bits - window
	if bits == untrustedAddressBits {
		window, base = 32<<30, 32<<30
	}
	le.PutUint64(r[offMmio64Base:], base)
	le.PutUint64(r[offMmio64Size:], window)
	le.PutUint32(r[offMmio32Base:], 0xc0000000)
	le.PutUint32(r[offMmio32Size:], 0x3c000000)
	le.PutUint64(r[offIOBase:], 0x6000)
	le.PutUint64(r[offIOSize:], 0xa000)
	le.PutUint32(r[offBootCPUs:], uint32(m.VCPUs))
	le.PutUint32(r[offMaxCPUs:], uint32(maxCPUs))
	le.PutUint32(r[offDefaultMaxCPUs:], 64)
	if m.S3 {
		r[offS3] = 1
		// 512 KiB and a stack for each CPU, at the end of low memory.
		size := uint64(0x80000) + 0x8000*uint64(maxCPUs)
		le.PutUint32(r[offS3Base:], uint32(m.lowMemory()-size))
		le.PutUint32(r[offS3Size:], uint32(size))
	}
	// Two flags behind the record, set on the way.
	r[offFlags], r[offFlags+1] = 1, 1
	return out, nil
}

// Where the platform record is in the data of its module, and its fields.
const (
	layoutDataSize = 0x280
	layoutRecord   = 0x118
	layoutSize     = 0x74

	offHostBridge      = 0x00
	offS3              = 0x0f
	offFirstNonAddress = 0x14
	offAddressWidth    = 0x1c
	offUncached        = 0x1d
	offMmio64Base      = 0x2e
	offMmio64Size      = 0x36
	offMmio32Base      = 0x3e
	offMmio32Size      = 0x42
	offIOBase          = 0x46
	offIOSize          = 0x4e
	offBootCPUs        = 0x5e
	offMaxCPUs         = 0x62
	offDefaultMaxCPUs  = 0x66
	offS3Base          = 0x6a
	offS3Size          = 0x6e
	offFlags           = 0x72
)

type dataSpan struct{ at, size int }

// platformData finds the data section of the platform module in the volume.
func platformData(fv []byte) (dataSpan, error) {
	var found dataSpan
	err := eachFile(fv, func(f ffsFile) error {
		if f.name != platformPei {
			return nil
		}
		return eachSection(f.body, func(s section) error {
			if s.kind != sectionPE32 {
				return nil
			}
			img, err := pe.NewFile(bytes.NewReader(s.body))
			if err != nil {
				return fmt.Errorf("platform module: %w", err)
			}
			defer img.Close()
			sec := img.Section(".data")
			if sec == nil {
				return errors.New("platform module has no .data section")
			}
			if uint64(sec.Offset)+uint64(sec.Size) > uint64(len(s.body)) {
				return errors.New("platform module's .data section is cut off")
			}
			if sec.Offset != sec.VirtualAddress {
				return errors.New("platform module is not made to run in place")
			}
			found = dataSpan{at: f.at + s.at + int(sec.Offset), size: int(sec.Size)}
			return nil
		})
	})
	if err != nil {
		return found, err
	}
	if found.size == 0 {
		return found, errors.New("no platform module in the PEI volume")
	}
	return found, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
