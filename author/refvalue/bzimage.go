package refvalue

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
)

// maxKernel bounds a kernel image.
const maxKernel = 256 << 20

// Authenticode is the SHA-256 digest of a PE image as firmware measures it:
// everything but the checksum, the entry of the certificate table, and the
// certificates themselves.
func Authenticode(img []byte) ([sha256.Size]byte, error) {
	var zero [sha256.Size]byte
	le := binary.LittleEndian
	size := uint64(len(img))
	if size < 0x40 || !bytes.HasPrefix(img, []byte("MZ")) {
		return zero, errors.New("not a PE image: no MZ header")
	}
	pe := uint64(le.Uint32(img[0x3c:]))
	if pe+24 > size || string(img[pe:pe+4]) != "PE\x00\x00" {
		return zero, errors.New("not a PE image: no PE header")
	}
	sections := uint64(le.Uint16(img[pe+6:]))
	optSize := uint64(le.Uint16(img[pe+20:]))
	opt := pe + 24
	if optSize < 2 || opt+optSize+40*sections > size {
		return zero, errors.New("PE headers are cut off")
	}
	var dirs uint64 // offset of the data directories in the optional header
	switch magic := le.Uint16(img[opt:]); magic {
	case 0x10b:
		dirs = 96
	case 0x20b:
		dirs = 112
	default:
		return zero, fmt.Errorf("PE optional header has magic %#x, expected 0x10b or 0x20b", magic)
	}
	if optSize < dirs || le.Uint32(img[opt+dirs-4:]) < 5 || optSize < dirs+5*8 {
		return zero, errors.New("PE image has no certificate table entry")
	}
	certEntry := opt + dirs + 4*8
	certSize := uint64(le.Uint32(img[certEntry+4:]))
	headers := uint64(le.Uint32(img[opt+60:]))
	if headers > size || headers < certEntry+8 {
		return zero, fmt.Errorf("PE headers of %d bytes in an image of %d", headers, size)
	}

	h := sha256.New()
	h.Write(img[:opt+64])
	h.Write(img[opt+68 : certEntry])
	h.Write(img[certEntry+8 : headers])
	hashed := headers

	type span struct{ at, size uint64 }
	var spans []span
	for i := range sections {
		s := img[opt+optSize+40*i:]
		sp := span{at: uint64(le.Uint32(s[20:])), size: uint64(le.Uint32(s[16:]))}
		if sp.size == 0 {
			continue
		}
		if sp.at+sp.size > size {
			return zero, fmt.Errorf("PE section %d ends at %d, the image at %d", i, sp.at+sp.size, size)
		}
		// Sections that overlap could make a small image cost a lot.
		if hashed += sp.size; hashed > size {
			return zero, fmt.Errorf("PE sections have more than the %d bytes of the image", size)
		}
		spans = append(spans, sp)
	}
	sort.SliceStable(spans, func(i, j int) bool { return spans[i].at < spans[j].at })
	for _, sp := range spans {
		h.Write(img[sp.at : sp.at+sp.size])
	}
	if certSize > size || hashed > size-certSize {
		return zero, fmt.Errorf("PE image of %d bytes has %d bytes of sections and %d of certificates", size, hashed, certSize)
	}
	h.Write(img[hashed : size-certSize])
	var out [sha256.Size]byte
	h.Sum(out[:0])
	return out, nil
}

// Fields of the x86 boot protocol (Documentation/arch/x86/boot.rst).
const (
	bzMagic      = 0x202
	bzVersion    = 0x206
	bzLoader     = 0x210
	bzFlags      = 0x211
	bzInitrd     = 0x218
	bzInitrdSize = 0x21c
	bzHeapEnd    = 0x224
	bzCmdline    = 0x228
	bzXLoadFlags = 0x236
	bzEnd        = 0x268
)

// qemuHeader returns the kernel as QEMU before version 10 hands it to the
// firmware: with the fields of the boot protocol filled in that a BIOS boot
// would need. An EFI boot ignores them, but they are measured.
func qemuHeader(kernel []byte, initrdSize uint64, m Machine) ([]byte, error) {
	le := binary.LittleEndian
	if len(kernel) < bzEnd || string(kernel[bzMagic:bzMagic+4]) != "HdrS" {
		return nil, errors.New("not an x86 kernel: no boot protocol header")
	}
	if v := le.Uint16(kernel[bzVersion:]); v < 0x20c || kernel[bzFlags]&1 == 0 || le.Uint16(kernel[bzXLoadFlags:])&2 == 0 {
		return nil, fmt.Errorf("kernel has boot protocol %#x; at least 0x20c with loading above 4 GiB is needed", v)
	}
	const (
		cmdlineAddr = 0x20000
		realAddr    = 0x10000
		acpiSize    = 0x28000 // kept free below the end of low memory
	)
	limit := m.lowMemory() - acpiSize - 1
	if initrdSize >= limit {
		return nil, fmt.Errorf("an initrd of %d bytes does not fit into %d MiB", initrdSize, m.MemoryMiB)
	}
	out := bytes.Clone(kernel)
	out[bzLoader] = 0xb0
	out[bzFlags] |= 0x80
	le.PutUint16(out[bzHeapEnd:], cmdlineAddr-realAddr-0x200)
	le.PutUint32(out[bzCmdline:], cmdlineAddr)
	if initrdSize > 0 {
		le.PutUint32(out[bzInitrd:], uint32((limit-initrdSize)&^4095))
		le.PutUint32(out[bzInitrdSize:], uint32(initrdSize))
	}
	return out, nil
}
