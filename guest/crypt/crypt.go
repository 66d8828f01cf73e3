// Package crypt encrypts disks of the host with keys that exist in the kernel of this boot only: what was written cannot
// be read by the host, and by nobody after the pod has ended. With integrity, each block carries an authentication code,
// so that the host cannot change it either; it can put back what it has seen at the same place, or destroy it.
package crypt

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	sector    = 512
	blockSize = 4096
	tagSize   = 32 // HMAC-SHA-256
	xtsKey    = 64 // AES-256-XTS
	macKey    = 32

	// minSize leaves room for the integrity layer's own tables.
	minSize = 4 << 20
)

// Disk is an encrypted disk.
type Disk struct {
	// Node is the device with the plain text.
	Node string
	// Size is its size in bytes.
	Size int64
	// Salt is that of the hashes of a verified disk.
	Salt  []byte
	names []string // of the devices, the lowest first
}

// Modules are the kernel modules that Open needs.
func Modules(integrity bool) []string {
	names := []string{"dm_mod", "dm_crypt", "xts", "aesni_intel"}
	if integrity {
		names = append(names, "dm_integrity", "authenc", "sha256_ssse3")
	}
	return names
}

// Open encrypts the disk behind node, of size bytes, with a new key. name is that of the device and must be free. What
// was on the disk is lost.
func Open(name, node string, size int64, integrity bool) (_ *Disk, err error) {
	size = size / blockSize * blockSize
	if size < minSize {
		return nil, fmt.Errorf("encrypting %s: it has %d bytes, expected at least %d", node, size, minSize)
	}
	m, err := openMapper()
	if err != nil {
		return nil, err
	}
	defer m.Close()
	d := &Disk{Size: size}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("encrypting %s: %w", node, err), d.remove(m))
		}
	}()
	cipher, keySize, options, below := "aes-xts-plain64", xtsKey, "1 sector_size:4096", node
	if integrity {
		if below, err = d.addIntegrity(m, name+"-tags", node); err != nil {
			return nil, err
		}
		cipher, keySize = "capi:authenc(hmac(sha256),xts(aes))-plain64", xtsKey+macKey
		options = fmt.Sprintf("2 integrity:%d:aead sector_size:4096", tagSize)
	}
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	params := hex.AppendEncode(append(make([]byte, 0, 512), cipher+" "...), key)
	clear(key)
	params = fmt.Appendf(params, " 0 %s 0 %s", below, options)
	defer clear(params)
	d.Node, err = m.create(name, target{kind: "crypt", sectors: uint64(d.Size / sector), params: params})
	if err != nil {
		return nil, err
	}
	d.names = append(d.names, name)
	return d, nil
}

// addIntegrity puts a layer with room for authentication codes on a disk. It has no journal: after a crash there is no
// key either.
func (d *Disk) addIntegrity(m *mapper, name, node string) (string, error) {
	f, err := os.OpenFile(node, os.O_RDWR|os.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening the disk: %w", err)
	}
	// The kernel formats a disk that begins with zeros.
	_, err = f.WriteAt(make([]byte, blockSize), 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("clearing the disk's start: %w", err)
	}
	params := []byte(fmt.Sprintf("%s 0 %d D 2 block_size:%d journal_sectors:%d", node, tagSize, blockSize, 1024))
	// How much is left beside the tags is known when it has been formatted, which a device of one block does.
	if _, err := m.create(name, target{kind: "integrity", sectors: blockSize / sector, params: params}); err != nil {
		return "", err
	}
	if err := m.remove(name); err != nil {
		return "", err
	}
	sectors, err := dataSectors(node, d.Size)
	if err != nil {
		return "", err
	}
	out, err := m.create(name, target{kind: "integrity", sectors: uint64(sectors), params: params})
	if err != nil {
		return "", err
	}
	d.names, d.Size = append(d.names, name), sectors*sector
	return out, nil
}

// dataSectors reads the kernel's superblock of the integrity layer. The disk is the host's: a number that it has made up
// is refused by the kernel when it is above the true one, and costs space when it is below.
func dataSectors(node string, size int64) (int64, error) {
	f, err := os.Open(node)
	if err != nil {
		return 0, fmt.Errorf("reading the integrity layer's size: %w", err)
	}
	defer f.Close()
	var b [24]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0, fmt.Errorf("reading the integrity layer's size: %w", err)
	}
	const unit = blockSize / sector
	n := binary.LittleEndian.Uint64(b[16:]) / unit * unit
	if string(b[:8]) != "integrt\x00" || n > uint64(size/sector) || n < uint64(size/sector/2) {
		return 0, fmt.Errorf("the integrity layer has %d of %d sectors for data", n, size/sector)
	}
	return int64(n), nil
}

// Close removes the devices as soon as nobody uses them, and the key with them.
func (d *Disk) Close() error {
	m, err := openMapper()
	if err != nil {
		return err
	}
	defer m.Close()
	return d.remove(m)
}

func (d *Disk) remove(m *mapper) error {
	var errs []error
	for i := len(d.names) - 1; i >= 0; i-- {
		errs = append(errs, m.remove(d.names[i]))
	}
	d.names = nil
	return errors.Join(errs...)
}
