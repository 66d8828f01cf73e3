package device

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// PCIPath names a PCI device by the slots on the way to it, from the root bus of a complex.
type PCIPath struct {
	root  uint8
	slots []slot
}

type slot struct{ device, function uint8 }

// maxPCIDepth bounds the bridges on a way.
const maxPCIDepth = 8

// ParsePCIPath reads SLOT[.FUNCTION]/… in hexadecimal. With three or more parts a first one of 20 or more names another
// root complex than 00 by its bus.
func ParsePCIPath(text string) (PCIPath, error) {
	bad := fmt.Errorf("PCI path %.60q: %w", text, ErrLocator)
	var p PCIPath
	parts := strings.Split(text, "/")
	if len(parts) > maxPCIDepth {
		return p, bad
	}
	if len(parts) >= 3 {
		const firstOther = 0x20
		if n, err := strconv.ParseUint(parts[0], 16, 8); err == nil && len(parts[0]) == 2 && n >= firstOther {
			p.root, parts = uint8(n), parts[1:]
		}
	}
	for _, part := range parts {
		dev, fn, dotted := strings.Cut(part, ".")
		d, err := strconv.ParseUint(dev, 16, 8)
		if err != nil || len(dev) > 2 || d > 0x1f {
			return p, bad
		}
		s := slot{device: uint8(d)}
		if dotted {
			n, err := strconv.ParseUint(fn, 16, 8)
			if err != nil || len(fn) != 1 || n > 7 {
				return p, bad
			}
			s.function = uint8(n)
		}
		p.slots = append(p.slots, s)
	}
	return p, nil
}

// PCI returns the sysfs directory and the bus address of a PCI device, or fs.ErrNotExist while it is not there.
func (f *Finder) PCI(p PCIPath) (dir, address string, err error) {
	bus := fmt.Sprintf("0000:%02x", p.root)
	dir = filepath.Join(f.Sys, "devices", fmt.Sprintf("pci0000:%02x", p.root))
	for i, s := range p.slots {
		if i > 0 {
			if bus, err = only(filepath.Join(dir, "pci_bus/*")); err != nil {
				return "", "", err
			}
		}
		address = fmt.Sprintf("%s:%02x.%x", bus, s.device, s.function)
		dir = filepath.Join(dir, address)
		if _, err := os.Stat(dir); err != nil {
			return "", "", fmt.Errorf("PCI device %s: %w", address, fs.ErrNotExist)
		}
	}
	return dir, address, nil
}
