package crypt

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// control is the device mapper's own device.
const control = "/dev/mapper/control"

// Commands and flags of the device mapper (linux/dm-ioctl.h).
const (
	dmCreate  = 3
	dmRemove  = 4
	dmSuspend = 6 // also resumes
	dmLoad    = 9

	flagReadOnly       = 1 << 0
	flagDeferredRemove = 1 << 17
	flagSecureData     = 1 << 15

	headerSize = 312
	targetSize = 40
)

// target is one line of a table that covers a whole device.
type target struct {
	kind    string
	sectors uint64
	params  []byte
	// readOnly devices open what they are made of read-only, too.
	readOnly bool
}

// mapper is an open device mapper.
type mapper struct{ f *os.File }

func openMapper() (*mapper, error) {
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the device mapper: %w", err)
	}
	return &mapper{f}, nil
}

func (m *mapper) Close() error { return m.f.Close() }

// call makes one request about a device. The buffer, which may hold a key, is cleared here and by the kernel.
func (m *mapper) call(command uintptr, name string, flags uint32, t *target) (minor uint32, err error) {
	size := headerSize
	if t != nil {
		size += (targetSize + len(t.params) + 1 + 7) / 8 * 8
	}
	buf := make([]byte, size)
	defer clear(buf)
	le := binary.LittleEndian
	le.PutUint32(buf[0:], 4) // version of the interface
	le.PutUint32(buf[12:], uint32(size))
	le.PutUint32(buf[16:], headerSize)
	le.PutUint32(buf[28:], flags|flagSecureData)
	copy(buf[48:175], name)
	if t != nil {
		le.PutUint32(buf[20:], 1)
		spec := buf[headerSize:]
		le.PutUint64(spec[8:], t.sectors)
		copy(spec[24:39], t.kind)
		copy(spec[targetSize:], t.params)
	}
	request := uintptr(3<<30 | headerSize<<16 | 0xfd<<8 | int(command))
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, m.f.Fd(), request, uintptr(unsafe.Pointer(&buf[0])))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return 0, errno
	}
	dev := le.Uint64(buf[40:])
	return uint32(dev&0xff | dev>>12&0xfff00), nil
}

// create makes a device with a table and returns its node.
func (m *mapper) create(name string, t target) (string, error) {
	var flags uint32
	if t.readOnly {
		flags = flagReadOnly
	}
	minor, err := m.call(dmCreate, name, flags, nil)
	if err != nil {
		return "", fmt.Errorf("making the device %s: %w", name, err)
	}
	for _, step := range []struct {
		what    string
		command uintptr
		table   *target
	}{{"loading the table", dmLoad, &t}, {"starting", dmSuspend, nil}} {
		if _, err := m.call(step.command, name, flags, step.table); err != nil {
			_ = m.remove(name)
			return "", fmt.Errorf("%s of %s (%s): %w", step.what, name, t.kind, err)
		}
	}
	return fmt.Sprintf("/dev/dm-%d", minor), nil
}

// remove makes a device go as soon as nobody uses it.
func (m *mapper) remove(name string) error {
	if _, err := m.call(dmRemove, name, flagDeferredRemove, nil); err != nil {
		return fmt.Errorf("removing the device %s: %w", name, err)
	}
	return nil
}
