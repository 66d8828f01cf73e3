package refvalue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// maxUnpacked bounds what a firmware file may unpack to.
const maxUnpacked = 64 << 20

// guid is a GUID as firmware stores it.
type guid [16]byte

func parseGUID(a uint32, b, c uint16, d [8]byte) guid {
	var g guid
	binary.LittleEndian.PutUint32(g[0:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	copy(g[8:], d[:])
	return g
}

var (
	// lzmaSection marks a section packed with LZMA.
	lzmaSection = parseGUID(0xee4e5898, 0x3914, 0x4259, [8]byte{0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf})
	// platformPei is the module that finds out about the machine.
	platformPei = parseGUID(0x222c386d, 0x5abc, 0x4fb4, [8]byte{0xb1, 0x24, 0xfb, 0xb8, 0x24, 0x88, 0xac, 0xf4})
)

// Section types of the UEFI Platform Initialization specification, volume 3.
const (
	sectionGUIDed   = 0x02
	sectionPE32     = 0x10
	sectionFVImage  = 0x17
	ffsHeaderSize   = 24
	fileTypePadding = 0xf0
)

// volumes are the two firmware volumes OVMF unpacks into memory at start and
// measures: the early one with PEI modules, and the main one.
type volumes struct {
	pei, dxe []byte
}

// unpackOVMF finds the packed section in an OVMF code file and the volumes in
// it. The walk follows the structure: volume, files, sections.
func unpackOVMF(code []byte) (*volumes, error) {
	var packed []byte
	for at := 0; at+56 <= len(code); {
		fv, err := volumeAt(code[at:])
		if err != nil {
			return nil, fmt.Errorf("firmware volume at %#x: %w", at, err)
		}
		err = eachFile(fv, func(f ffsFile) error {
			return eachSection(f.body, func(s section) error {
				if s.kind == sectionGUIDed && len(s.body) >= 20 && guid(s.body[:16]) == lzmaSection {
					// Offsets count from the section's header.
					off := int(binary.LittleEndian.Uint16(s.body[16:])) - s.header
					if off < 20 || off > len(s.body) {
						return fmt.Errorf("packed section says its data is at %d of %d", off, len(s.body))
					}
					if packed != nil {
						return errors.New("more than one packed section")
					}
					packed = s.body[off:]
				}
				return nil
			})
		})
		if err != nil {
			return nil, fmt.Errorf("firmware volume at %#x: %w", at, err)
		}
		if packed != nil {
			break
		}
		at += len(fv)
	}
	if packed == nil {
		return nil, errors.New("no packed section: not an OVMF code file")
	}
	plain, err := unlzma(packed)
	if err != nil {
		return nil, fmt.Errorf("unpacking the firmware: %w", err)
	}
	var found [][]byte
	err = eachSection(plain, func(s section) error {
		if s.kind == sectionFVImage {
			found = append(found, s.body)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("unpacked firmware: %w", err)
	}
	if len(found) != 2 {
		return nil, fmt.Errorf("unpacked firmware has %d volumes, expected 2 (PEI and DXE)", len(found))
	}
	for _, fv := range found {
		if v, err := volumeAt(fv); err != nil {
			return nil, fmt.Errorf("unpacked firmware volume: %w", err)
		} else if len(v) != len(fv) {
			return nil, fmt.Errorf("unpacked firmware volume says %d bytes, has %d", len(v), len(fv))
		}
	}
	return &volumes{pei: found[0], dxe: found[1]}, nil
}

func unlzma(data []byte) ([]byte, error) {
	if len(data) < 13 {
		return nil, errors.New("LZMA header is cut off")
	}
	if size := binary.LittleEndian.Uint64(data[5:]); size > maxUnpacked {
		return nil, fmt.Errorf("says it has %d bytes, more than %d", size, maxUnpacked)
	}
	if dict := binary.LittleEndian.Uint32(data[1:]); dict > maxUnpacked {
		return nil, fmt.Errorf("wants a dictionary of %d bytes, more than %d", dict, maxUnpacked)
	}
	r, err := lzma.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, maxUnpacked))
}

// volumeAt returns the volume that begins a piece of firmware.
func volumeAt(b []byte) ([]byte, error) {
	if len(b) < 56 || string(b[40:44]) != "_FVH" {
		return nil, errors.New("no volume header")
	}
	size := binary.LittleEndian.Uint64(b[32:])
	header := binary.LittleEndian.Uint16(b[48:])
	if size > uint64(len(b)) || uint64(header) > size || header < 56 {
		return nil, fmt.Errorf("volume of %d bytes with a header of %d, in %d bytes", size, header, len(b))
	}
	return b[:size], nil
}

type ffsFile struct {
	name guid
	at   int // offset of the body in the volume
	body []byte
}

// eachFile walks the files of a volume.
func eachFile(fv []byte, visit func(ffsFile) error) error {
	at := int(binary.LittleEndian.Uint16(fv[48:]))
	if ext := int(binary.LittleEndian.Uint16(fv[52:])); ext != 0 {
		if ext+20 > len(fv) {
			return errors.New("extended volume header is cut off")
		}
		extSize := binary.LittleEndian.Uint32(fv[ext+16:])
		if uint64(ext)+uint64(extSize) > uint64(len(fv)) {
			return errors.New("extended volume header is cut off")
		}
		at = ext + int(extSize)
	}
	for {
		at = align(at, 8)
		if at+ffsHeaderSize > len(fv) || allFF(fv[at:at+ffsHeaderSize]) {
			return nil
		}
		h := fv[at : at+ffsHeaderSize]
		size, header := int(h[20])|int(h[21])<<8|int(h[22])<<16, ffsHeaderSize
		if h[19]&1 != 0 { // large file: 64 bits of size behind the header
			if at+32 > len(fv) {
				return errors.New("file header is cut off")
			}
			big := binary.LittleEndian.Uint64(fv[at+24:])
			if big > uint64(len(fv)) {
				return fmt.Errorf("file at %#x of %d bytes in a volume of %d", at, big, len(fv))
			}
			size, header = int(big), 32
		}
		if size < header || at+size > len(fv) {
			return fmt.Errorf("file at %#x of %d bytes in a volume of %d", at, size, len(fv))
		}
		if h[18] != fileTypePadding {
			if err := visit(ffsFile{name: guid(h[:16]), at: at + header, body: fv[at+header : at+size]}); err != nil {
				return err
			}
		}
		at += size
	}
}

type section struct {
	kind   byte
	at     int // offset of the body
	header int
	body   []byte
}

// eachSection walks a sequence of sections. What does not parse as one ends
// it: files that are not made of sections are walked past, not understood.
func eachSection(b []byte, visit func(section) error) error {
	for at := 0; at+4 <= len(b); {
		size, header := int(b[at])|int(b[at+1])<<8|int(b[at+2])<<16, 4
		if size == 0xffffff {
			if at+8 > len(b) {
				return nil
			}
			big := binary.LittleEndian.Uint32(b[at+4:])
			if uint64(big) > uint64(len(b)) {
				return nil
			}
			size, header = int(big), 8
		}
		if size < header || at+size > len(b) {
			return nil
		}
		if err := visit(section{kind: b[at+3], at: at + header, header: header, body: b[at+header : at+size]}); err != nil {
			return err
		}
		at = align(at+size, 4)
	}
	return nil
}

func align(n, to int) int { return (n + to - 1) / to * to }

func allFF(b []byte) bool {
	for _, c := range b {
		if c != 0xff {
			return false
		}
	}
	return true
}
