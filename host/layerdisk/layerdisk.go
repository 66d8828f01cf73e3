// Package layerdisk makes one virtual disk of several layer files without copying them: a head with a partition table (GPT), and a VMDK
// descriptor that strings the head and the files together as flat extents, which QEMU reads as one disk. The files stay as they are, so
// that all virtual machines of the node share what the host's page cache has of them.
//
// The layout is that of Kata's runtime: one partition for each layer, the topmost first, from the first MiB on and each on a MiB
// boundary; there is no copy of the table at the end.
package layerdisk

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"
)

// MaxLayers is the number of entries of the table.
const MaxLayers = 128

const (
	sector     = 512
	align      = 2048 // sectors: 1 MiB
	maxSectors = 1 << 40
	// maxExtent is what an extent of this kind of VMDK may have.
	maxExtent = (2 << 30) / sector
	// maxPath is what QEMU reads of a file name in a descriptor.
	maxPath = 511
)

// Names of the files that Write makes.
const (
	descriptorFile = "layers.vmdk"
	headFile       = "head.img"
	gapFile        = "gap.img"
)

// Layer is a file that becomes a partition.
type Layer struct {
	Path string // absolute
	Size int64  // bytes
	Name string // of the partition; what is above 36 characters is cut
}

// place is where a layer comes to lie, in sectors.
type place struct{ start, sectors int64 }

func (p place) end() int64 { return p.start + p.sectors - 1 }

// Write makes the disk of layers, the topmost first, in a directory of its own, which must be empty or not there, and returns the path of
// the descriptor. The directory is 0700 and needs less than 2 MiB.
func Write(dir string, layers []Layer) (descriptor string, err error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("making a disk of %d layers: %w", len(layers), err)
	}
	places, err := arrange(layers)
	if err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	head, gap := filepath.Join(dir, headFile), filepath.Join(dir, gapFile)
	text, err := describe(head, gap, layers, places)
	if err != nil {
		return fail(err)
	}
	descriptor = filepath.Join(dir, descriptorFile)
	for _, f := range []struct {
		name string
		data []byte
		size int64
	}{{head, table(layers, places), align * sector}, {gap, nil, align * sector}, {descriptor, []byte(text), int64(len(text))}} {
		if err := writeFile(f.name, f.data, f.size); err != nil {
			return fail(err)
		}
	}
	return descriptor, nil
}

func writeFile(name string, data []byte, size int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Truncate(size), f.Close())
}

// arrange finds the places of the layers.
func arrange(layers []Layer) ([]place, error) {
	if len(layers) == 0 || len(layers) > MaxLayers {
		return nil, fmt.Errorf("expected 1 to %d", MaxLayers)
	}
	out := make([]place, len(layers))
	next := int64(align)
	for i, l := range layers {
		if l.Size <= 0 || l.Size > maxSectors*sector {
			return nil, fmt.Errorf("layer %d, %.200q, has %d bytes", i+1, l.Path, l.Size)
		}
		out[i] = place{next, (l.Size + sector - 1) / sector}
		next = (out[i].end() + align) / align * align
		if next > maxSectors {
			return nil, fmt.Errorf("they have more than %d bytes together", int64(maxSectors)*sector)
		}
	}
	return out, nil
}

// describe is the VMDK descriptor. Gaps come from a file of zeros, which may be read beyond its end.
func describe(head, gap string, layers []Layer, places []place) (string, error) {
	var b strings.Builder
	b.WriteString("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n")
	var err error
	extent := func(path string, sectors int64) {
		if !filepath.IsAbs(path) || len(path) > maxPath || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == '"' || r == 0x7f }) {
			err = errors.Join(err, fmt.Errorf("path %.80q: expected an absolute one of up to %d bytes without quotes and control characters", path, maxPath))
		}
		for from := int64(0); from < sectors; from += maxExtent {
			fmt.Fprintf(&b, "RW %d FLAT \"%s\" %d\n", min(maxExtent, sectors-from), path, from)
		}
	}
	extent(head, align)
	for i, l := range layers {
		extent(l.Path, places[i].sectors)
		if i+1 < len(places) {
			extent(gap, places[i+1].start-places[i].end()-1)
		}
	}
	b.WriteString("\n# The Disk Data Base\n#DDB\nddb.virtualHWVersion = \"4\"\nddb.adapterType = \"ide\"\n")
	return b.String(), err
}

// Sizes of the parts of the table.
const (
	headerSize   = 92
	entrySize    = 128
	entriesStart = 2 * sector
	firstUsable  = 34
)

// linuxData is the type of a partition with a Linux file system, 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as it is on disks.
var linuxData = [16]byte{0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4}

// table is the protective MBR, the header and the entries (UEFI specification 2.10, section 5).
func table(layers []Layer, places []place) []byte {
	b := make([]byte, entriesStart+MaxLayers*entrySize)
	le := binary.LittleEndian
	last := places[len(places)-1].end()

	mbr := b[446:]
	mbr[4] = 0xee
	copy(mbr[1:], []byte{0, 2, 0})
	copy(mbr[5:], []byte{0xff, 0xff, 0xff})
	le.PutUint32(mbr[8:], 1)
	le.PutUint32(mbr[12:], uint32(min(last, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa

	sum := sha256.New()
	for i, p := range places {
		e := b[entriesStart+i*entrySize:]
		copy(e, linuxData[:])
		fmt.Fprintf(sum, "%d %d %s\n", p.start, p.sectors, layers[i].Name)
		copy(e[16:], guid(sum.Sum(nil)))
		le.PutUint64(e[32:], uint64(p.start))
		le.PutUint64(e[40:], uint64(p.end()))
		const nameUnits = 36
		name := utf16.Encode([]rune(layers[i].Name))
		for j, u := range name[:min(len(name), nameUnits)] {
			le.PutUint16(e[56+2*j:], u)
		}
	}
	h := b[sector:]
	copy(h, "EFI PART")
	le.PutUint32(h[8:], 1<<16)
	le.PutUint32(h[12:], headerSize)
	le.PutUint64(h[24:], 1)              // where the header is
	le.PutUint64(h[32:], uint64(last)+1) // where its copy would be, behind the end
	le.PutUint64(h[40:], firstUsable)
	le.PutUint64(h[48:], uint64(last))
	fmt.Fprint(sum, "disk")
	copy(h[56:], guid(sum.Sum(nil)))
	le.PutUint64(h[72:], entriesStart/sector)
	le.PutUint32(h[80:], MaxLayers)
	le.PutUint32(h[84:], entrySize)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(b[entriesStart:]))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:headerSize]))
	return b
}

// guid makes a GUID of bytes, so that the same layers give the same table.
func guid(b []byte) []byte {
	b[7], b[8] = b[7]&0x0f|0x80, b[8]&0x3f|0x80 // version 8, of our own making
	return b[:16]
}
