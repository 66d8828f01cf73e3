package guestimage

import (
	"bytes"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// initrdInput is everything the initrd is made of.
type initrdInput struct {
	Release string
	Guest   []byte
	Runc    []byte
	Roots   []byte // PEM
	Modules *moduleSet
}

// moduleListPath names the modules to load at boot, one path per line, in
// order.
const moduleListPath = "etc/cloister/modules"

// records lists the files of the initrd, sorted.
func (in initrdInput) records() []cpio.Record {
	var recs []cpio.Record
	file := func(name string, data []byte, perm uint64) {
		recs = append(recs, cpio.StaticFile(name, string(data), perm))
	}
	for _, d := range []string{"proc", "sys", "run", "usr/lib", "var", "newroot"} {
		recs = append(recs, cpio.Directory(d, 0o755))
	}
	recs = append(recs,
		cpio.Directory("root", 0o700),
		cpio.Directory("tmp", 0o1777),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.Symlink("bin", "usr/bin"),
		cpio.Symlink("sbin", "usr/bin"),
		cpio.Symlink("var/run", "../run"),
	)
	file("init", in.Guest, 0o755)
	file("usr/bin/runc", in.Runc, 0o755)
	file("etc/passwd", []byte("root:x:0:0:root:/root:/usr/bin/false\n"), 0o644)
	file("etc/group", []byte("root:x:0:\n"), 0o644)
	file(rootsPath, in.Roots, 0o644)
	file("etc/hosts", []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644)

	if len(in.Modules.Files) == 0 {
		return sortRecords(recs) // everything is built into the kernel
	}
	base := "lib/modules/" + in.Release + "/"
	var list strings.Builder
	for _, p := range in.Modules.Boot {
		list.WriteString("/" + base + p + "\n")
	}
	file(moduleListPath, []byte(list.String()), 0o644)
	file(base+"modules.dep", in.Modules.depFile(), 0o644)
	file(base+"modules.alias", in.Modules.aliasFile(), 0o644)
	for _, p := range in.Modules.paths() {
		file(base+p, in.Modules.Files[p], 0o644)
	}
	return sortRecords(recs)
}

// sortRecords adds the missing parent directories and orders by name, which
// puts every directory before what is in it.
func sortRecords(recs []cpio.Record) []cpio.Record {
	have := map[string]bool{}
	for _, r := range recs {
		have[r.Name] = true
	}
	for _, r := range recs {
		for i, c := range r.Name {
			if c == '/' && !have[r.Name[:i]] {
				have[r.Name[:i]] = true
				recs = append(recs, cpio.Directory(r.Name[:i], 0o755))
			}
		}
	}
	sort.Slice(recs, func(i, j int) bool { return recs[i].Name < recs[j].Name })
	return recs
}

// writeCPIO writes a newc archive whose bytes depend on names, modes and
// contents only.
func writeCPIO(w io.Writer, recs []cpio.Record) error {
	rw := cpio.Newc.Writer(w)
	seen := map[string]bool{}
	for i, r := range recs {
		if r.Name == "" || strings.HasPrefix(r.Name, "/") || seen[r.Name] {
			return fmt.Errorf("initrd entry %q is empty, absolute or there twice", r.Name)
		}
		seen[r.Name] = true
		r.Ino = uint64(i) + 1
		r.UID, r.GID, r.MTime, r.Major, r.Minor = 0, 0, 0, 0, 0
		r.NLink = 1
		if err := rw.WriteRecord(r); err != nil {
			return fmt.Errorf("writing initrd entry %s: %w", r.Name, err)
		}
	}
	return cpio.WriteTrailer(rw)
}

// packInitrd writes the archive that the kernel unpacks.
func packInitrd(in initrdInput) ([]byte, error) {
	var out bytes.Buffer
	if err := writeCPIO(&out, in.records()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// compressInitrd compresses what packInitrd has made.
func compressInitrd(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	// One thread and a fixed level: the output must not depend on the number
	// of cores. The window stays below what the kernel's decoder accepts.
	zw, err := zstd.NewWriter(&out,
		zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithWindowSize(8<<20),
		zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, fmt.Errorf("preparing zstd: %w", err)
	}
	if _, err := zw.Write(plain); err != nil {
		return nil, fmt.Errorf("compressing the initrd: %w", err)
	}
	if err := zw.Close(); err != nil {
		return nil, fmt.Errorf("compressing the initrd: %w", err)
	}
	return out.Bytes(), nil
}
