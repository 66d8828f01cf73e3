package eventlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

const (
	imageHead    = 32 // UEFI_IMAGE_LOAD_EVENT before the path: address, length, link address, path length
	pathEnd      = 4  // the node that ends a path
	maxPathNodes = 64
)

// imagePath reads where an image was loaded from, as text; nil when the event
// does not say, or not in a form that can be read.
func imagePath(data []byte) []any {
	if len(data) < imageHead {
		return nil
	}
	n := binary.LittleEndian.Uint64(data[24:])
	if n < pathEnd || n > uint64(len(data)-imageHead) {
		return nil
	}
	path := data[imageHead : imageHead+int(n)-pathEnd]
	var out []any
	for len(path) > 0 {
		if len(path) < 4 || len(out) == maxPathNodes {
			return nil
		}
		size := int(binary.LittleEndian.Uint16(path[2:]))
		if size < 4 || size > len(path) {
			return nil
		}
		out = append(out, nodeText(path[0], path[1], path[4:size]))
		path = path[size:]
	}
	return out
}

// nodeText is the text form of one device path node, as upstream prints it.
func nodeText(kind, sub byte, data []byte) string {
	s := ""
	switch {
	case kind == 1 && sub == 1 && len(data) >= 2:
		s = fmt.Sprintf("Pci(%d,%d)", data[0], data[1])
	case kind == 2 && sub == 1 && len(data) >= 8:
		s = acpiText(data)
	case kind == 3 && sub == 5 && len(data) >= 2:
		s = fmt.Sprintf("USB(%d,%d)", data[0], data[1])
	case kind == 3 && sub == 0x0B && len(data) >= 33:
		// The address is padded to 32 bytes; upstream drops zeros from its end, those of the address too.
		s = fmt.Sprintf("Mac(%s,0x%02X)", strings.ToUpper(strings.TrimRight(hex.EncodeToString(data[:31]), "0")), data[32])
	case kind == 3 && sub == 0x0C && len(data) >= 23:
		s = ipv4Text(data)
	case kind == 3 && sub == 0x15 && len(data) >= 16:
		s = fmt.Sprintf("FibreEx(0x%x,0x%x)", data[:8], data[8:16])
	case kind == 4 && sub == 1 && len(data) >= 38:
		s = diskText(data)
	case kind == 4 && sub == 3 && len(data) >= 16:
		s = fmt.Sprintf("VenMedia(%s,%x)", guidText(data), data[16:])
	case kind == 4 && sub == 4 && len(data) >= 2 && len(data)%2 == 0:
		s = fmt.Sprintf("File(%s)", utf16Text(data[:len(data)-2]))
	case kind == 5 && sub == 1 && len(data) >= 4:
		s = biosText(data)
	}
	if s == "" {
		return fmt.Sprintf("Path(%d,%d,%x)", kind, sub, data)
	}
	return s
}

// acpiText prints a compressed EISA id, three letters of five bits and a number.
func acpiText(data []byte) string {
	hid, uid := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])
	letter := func(shift int) rune { return rune('@' + hid>>shift&0x1F) }
	return fmt.Sprintf("ACPI(%c%c%c%04X,%d)", letter(10), letter(5), letter(0), hid>>16, uid)
}

// ipv4Text prints addresses as little-endian numbers, as upstream reads them.
func ipv4Text(data []byte) string {
	addr := func(b []byte) netip.Addr { return netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]}) }
	le := binary.LittleEndian
	protocol := map[uint16]string{6: "TCP", 17: "UDP"}[le.Uint16(data[12:])]
	origin := map[byte]string{0: "DHCP", 1: "Static"}[data[14]]
	gateway := ""
	if g, mask := le.Uint32(data[15:]), le.Uint32(data[19:]); g != 0 || mask != 0 {
		gateway = fmt.Sprintf(",%d,%d", g, mask)
	}
	return fmt.Sprintf("IPv4(%v,%s,%s,%v%s)", addr(data[4:]), protocol, origin, addr(data), gateway)
}

func diskText(data []byte) string {
	le := binary.LittleEndian
	number, start, size := le.Uint32(data), le.Uint64(data[4:]), le.Uint64(data[12:])
	label := ""
	switch data[36] {
	case 1:
		label = fmt.Sprintf("MBR,0x%08x", le.Uint32(data[20:]))
	case 2:
		label = "GPT," + guidText(data[20:])
	default:
		return ""
	}
	where := ""
	if number != 0 {
		where = fmt.Sprintf(",%#x,%#x", start, size)
	}
	return fmt.Sprintf("HD(%d,%s%s)", number, label, where)
}

func biosText(data []byte) string {
	kind := binary.LittleEndian.Uint16(data)
	name, ok := map[uint16]string{1: "FLOPPY", 2: "HARD_DRIVE", 3: "CDROM", 4: "PCMCIA", 5: "USB",
		6: "EMBEDDED_NETWORK", 0x80: "DEV", 0xFF: "UNKNOWN"}[kind]
	if !ok {
		name = fmt.Sprint(kind)
	}
	text := data[4:]
	if i := bytes.IndexByte(text, 0); i >= 0 {
		text = text[:i]
	}
	return fmt.Sprintf("BBS(%s,%s,%d)", name, strings.ToValidUTF8(string(text), "\uFFFD"), binary.LittleEndian.Uint16(data[2:]))
}

// guidText is a GUID in the order of the UEFI text form, upper case.
func guidText(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}
