// Package device finds the block devices that the host names by where they are attached, and waits for those that it is
// still attaching. Names come from the host: each is checked against its grammar before it becomes part of a path.
package device

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/uevent"
)

// ErrLocator means that a text does not name a device.
var ErrLocator = errors.New("not the name of a device")

// Block is a block device of the guest.
type Block struct {
	Name         string // below /dev
	Major, Minor int64
	Size         int64 // bytes
}

// Finder finds devices. The zero value is not usable.
type Finder struct {
	// Sys and Dev are /sys and /dev outside of tests.
	Sys, Dev string
	// Timeout bounds the wait for a device.
	Timeout time.Duration
	// Drivers, if not nil, loads the drivers of what is attached.
	Drivers func() error
	// Load, if not nil, loads a module by name.
	Load func(names ...string) error
}

// Path is the node of a device.
func (f *Finder) Path(b Block) string { return filepath.Join(f.Dev, b.Name) }

// Find returns the device at a place, waiting for it. Kinds are blk (a PCI path such as 02/01.0, or a node such as
// /dev/vdb), mmioblk (a node) and scsi (ID:LUN, both decimal).
func (f *Finder) Find(ctx context.Context, kind, place string) (Block, error) {
	look, err := f.look(kind, place)
	if err != nil {
		return Block{}, err
	}
	var found Block
	err = f.Wait(ctx, "the device at "+place, func() (bool, error) {
		name, err := look()
		if err == nil {
			found, err = f.describe(name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
	return found, err
}

// look checks a place and returns what finds the name of the device there, with fs.ErrNotExist while there is none.
func (f *Finder) look(kind, place string) (func() (string, error), error) {
	node := strings.HasPrefix(place, "/")
	switch {
	case kind == "scsi":
		id, lun, ok := strings.Cut(place, ":")
		if !ok || !decimal(id, 255) || !decimal(lun, 16383) {
			return nil, fmt.Errorf("SCSI address %.40q: %w: expected ID:LUN", place, ErrLocator)
		}
		return func() (string, error) { return f.scsi(id, lun) }, nil
	case node && (kind == "blk" || kind == "mmioblk"):
		name, ok := strings.CutPrefix(place, "/dev/")
		if !ok || !diskName(name) {
			return nil, fmt.Errorf("node %.40q: %w: expected /dev/vdX or /dev/sdX", place, ErrLocator)
		}
		return func() (string, error) { return name, nil }, nil
	case kind == "blk":
		p, err := ParsePCIPath(place)
		if err != nil {
			return nil, err
		}
		return func() (string, error) { return f.pciBlock(p) }, nil
	}
	return nil, fmt.Errorf("device %.40q of type %.20q: %w", place, kind, ErrLocator)
}

func decimal(s string, most uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n <= most && strconv.FormatUint(n, 10) == s
}

// diskName accepts names of whole disks.
func diskName(s string) bool {
	letters, ok := strings.CutPrefix(s, "vd")
	if !ok {
		letters, ok = strings.CutPrefix(s, "sd")
	}
	return ok && letters != "" && len(letters) <= 3 && strings.Trim(letters, "abcdefghijklmnopqrstuvwxyz") == ""
}

// pciBlock finds the disk of a PCI device.
func (f *Finder) pciBlock(p PCIPath) (string, error) {
	dir, _, err := f.PCI(p)
	if err != nil {
		return "", err
	}
	return only(filepath.Join(dir, "virtio*/block/*"))
}

// scsi finds the disk of a SCSI address, asking the adapters to look for it.
func (f *Finder) scsi(id, lun string) (string, error) {
	if f.Load != nil {
		if err := f.Load("virtio_scsi", "sd_mod"); err != nil {
			return "", err
		}
	}
	pattern := filepath.Join(f.Sys, "bus/scsi/devices/*:0:"+id+":"+lun+"/block/*")
	if name, err := only(pattern); err == nil {
		return name, nil
	}
	scans, err := filepath.Glob(filepath.Join(f.Sys, "class/scsi_host/*/scan"))
	if err != nil {
		return "", err
	}
	for _, scan := range scans {
		if err := os.WriteFile(scan, []byte("0 "+id+" "+lun), 0); err != nil {
			return "", fmt.Errorf("asking for SCSI devices: %w", err)
		}
	}
	return only(pattern)
}

// only returns the name of the one file of a pattern.
func only(pattern string) (string, error) {
	files, err := filepath.Glob(pattern)
	switch {
	case err != nil:
		return "", err
	case len(files) == 0:
		return "", fs.ErrNotExist
	case len(files) > 1:
		return "", fmt.Errorf("%d devices match %s, expected one", len(files), pattern)
	}
	return filepath.Base(files[0]), nil
}

// maxPartition is the last one that a GPT of the usual size has.
const maxPartition = 128

// Partition returns a partition of a disk by its number, from 1, waiting for it: the kernel reads the table when the disk appears.
func (f *Finder) Partition(ctx context.Context, disk Block, number int) (Block, error) {
	if number < 1 || number > maxPartition {
		return Block{}, fmt.Errorf("partition %d of %s: %w", number, disk.Name, ErrLocator)
	}
	name := fmt.Sprintf("%s%d", disk.Name, number) // names of disks end in a letter
	var found Block
	err := f.Wait(ctx, fmt.Sprintf("partition %d of %s", number, disk.Name), func() (bool, error) {
		// In the directory of the disk, so that it is no other device of that name.
		_, err := os.Stat(filepath.Join(f.Sys, "class/block", disk.Name, name, "partition"))
		if err == nil {
			found, err = f.read(name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
	return found, err
}

// describe reads what the kernel says about a disk.
func (f *Finder) describe(name string) (Block, error) {
	if !diskName(name) {
		return Block{}, fmt.Errorf("disk %.40q: %w", name, ErrLocator)
	}
	return f.read(name)
}

// read reads what the kernel says about a block device. It is there when its node is.
func (f *Finder) read(name string) (Block, error) {
	b := Block{Name: name}
	text, err := os.ReadFile(filepath.Join(f.Sys, "class/block", name, "dev"))
	if err != nil {
		return b, fmt.Errorf("examining disk %s: %w", name, err)
	}
	if _, err := fmt.Sscanf(string(text), "%d:%d", &b.Major, &b.Minor); err != nil {
		return b, fmt.Errorf("examining disk %s: %w", name, err)
	}
	if text, err = os.ReadFile(filepath.Join(f.Sys, "class/block", name, "size")); err != nil {
		return b, fmt.Errorf("examining disk %s: %w", name, err)
	}
	const sector, most = 512, 1 << 62
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n < 0 || n > most/sector {
		return b, fmt.Errorf("disk %s has the size %.40q", name, text)
	}
	b.Size = n * sector
	var st unix.Stat_t
	if err := unix.Lstat(f.Path(b), &st); err != nil {
		return b, fmt.Errorf("examining disk %s: %w", name, err)
	}
	return b, nil
}

// Wait waits, within the same bounds, until check says yes. Drivers of what is attached meanwhile are loaded.
func (f *Finder) Wait(ctx context.Context, what string, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	return uevent.WaitFor(ctx, what, func() (bool, error) {
		if f.Drivers != nil {
			if err := f.Drivers(); err != nil {
				return false, err
			}
		}
		return check()
	})
}
