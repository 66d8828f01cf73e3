package erofs

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

const (
	paxXattr    = "SCHILY.xattr."
	xattrMemory = 64        // of an attribute beside its bytes
	xattrHeader = 12        // before the attributes of an inode
	maxXattrs   = 65536 * 4 // what the inode's count of words can say

	trustedPrefix = 4
)

// xattr is an extended attribute as it is stored: the number of a known prefix, and the rest of the name.
type xattr struct {
	prefix      uint8
	name, value string
}

// size is what the attribute takes on disk, in bytes.
func (x xattr) size() int { return (4 + len(x.name) + len(x.value) + 3) &^ 3 }

// readXattrs takes the extended attributes of an entry's PAX records, sorted by name. Attributes that Linux would not store on a
// common file system are left out, as containerd does when it unpacks; so are overlayfs's own, whose meaning is not the image's to
// give.
func readXattrs(records map[string]string) ([]xattr, error) {
	var list []xattr
	total := xattrHeader
	for key, value := range records {
		full, ok := strings.CutPrefix(key, paxXattr)
		if !ok || strings.HasPrefix(full, "trusted.overlay.") || strings.HasPrefix(full, "user.overlay.") {
			continue
		}
		x, ok := newXattr(full, value)
		if !ok {
			continue
		}
		if len(x.name) > maxName || len(value) > math.MaxUint16 || strings.IndexByte(x.name, 0) >= 0 {
			return nil, fmt.Errorf("extended attribute %.100q of %d bytes: want a name of at most %d bytes, and a value of at most %d",
				full, len(value), maxName, math.MaxUint16)
		}
		if total += x.size(); total > maxXattrs-64 { // room for overlayfs's own
			return nil, &LimitError{What: "size of the extended attributes of a file", Limit: maxXattrs - 64}
		}
		list = append(list, xattr{x.prefix, strings.Clone(x.name), strings.Clone(value)}) // not the whole PAX header
	}
	slices.SortFunc(list, compareXattrs)
	return list, nil
}

func compareXattrs(a, b xattr) int {
	if a.prefix != b.prefix {
		return int(a.prefix) - int(b.prefix)
	}
	return strings.Compare(a.name, b.name)
}

// newXattr finds the number of the name's prefix (EROFS_XATTR_INDEX_*).
func newXattr(full, value string) (xattr, bool) {
	switch full {
	case "system.posix_acl_access":
		return xattr{2, "", value}, true
	case "system.posix_acl_default":
		return xattr{3, "", value}, true
	}
	for prefix, index := range map[string]uint8{"user.": 1, "trusted.": trustedPrefix, "security.": 6} {
		if name, ok := strings.CutPrefix(full, prefix); ok && name != "" {
			return xattr{index, name, value}, true
		}
	}
	return xattr{}, false
}

// stored returns the attributes of an inode with what this package adds.
func (i *inode) stored() []xattr {
	if !i.opaque && !i.hides {
		return i.xattrs
	}
	list := slices.Clone(i.xattrs)
	if i.opaque {
		list = append(list, xattr{trustedPrefix, "overlay.opaque", "y"})
	}
	if i.hides {
		// Where no other layer has the directory, overlayfs lists whiteouts as files unless this says that there may be some
		// (fs/overlayfs/inode.c, ovl_get_inode). An empty value means an unknown origin, which leads nowhere.
		list = append(list, xattr{trustedPrefix, "overlay.origin", ""})
	}
	slices.SortFunc(list, compareXattrs)
	return list
}

// xattrSize is what the attributes of an inode take on disk, in bytes.
func (i *inode) xattrSize() int64 {
	list := i.stored()
	if len(list) == 0 {
		return 0
	}
	n := xattrHeader
	for _, x := range list {
		n += x.size()
	}
	return int64(n)
}

// appendXattrs appends the attributes of an inode as they are on disk.
func (i *inode) appendXattrs(b []byte) []byte {
	list := i.stored()
	if len(list) == 0 {
		return b
	}
	b = append(b, make([]byte, xattrHeader)...)
	for _, x := range list {
		end := len(b) + x.size()
		b = append(b, byte(len(x.name)), x.prefix)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.value)))
		b = append(b, x.name...)
		b = append(b, x.value...)
		b = append(b, make([]byte, end-len(b))...)
	}
	return b
}
