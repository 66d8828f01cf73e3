package image

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Limits bound what an image may make of the guest's memory and file system. The zero value of a field means its
// default.
type Limits struct {
	// MaxBytes is the uncompressed size of all layers of an image. Default: 9/10 of the free space of the work
	// directory, and not more than 8/10 of the available memory if it is a tmpfs.
	MaxBytes int64 `toml:"max_uncompressed_bytes"`
	// MaxRatio is how many times larger than its compressed form a layer may become, once it has become larger
	// than 16 MiB. Default 1100: more than gzip can reach, so that only zstd bombs meet it.
	MaxRatio int64 `toml:"max_compression_ratio"`
	// MaxEntries is the number of files of all layers. Default 1000000.
	MaxEntries int64 `toml:"max_entries"`
	// MaxPathBytes is the length of a path or link target in a layer. Default 4096.
	MaxPathBytes int `toml:"max_path_bytes"`
}

const (
	ratioThreshold  = 16 << 20
	maxDirPathBytes = 16 << 20 // sum of the directory names remembered for their times
)

func (l Limits) withDefaults(dir string) (Limits, error) {
	if l.MaxBytes <= 0 {
		n, err := availableBytes(dir)
		if err != nil {
			return l, err
		}
		l.MaxBytes = n
	}
	if l.MaxRatio <= 0 {
		l.MaxRatio = 1100
	}
	if l.MaxEntries <= 0 {
		l.MaxEntries = 1_000_000
	}
	if l.MaxPathBytes <= 0 {
		l.MaxPathBytes = 4096
	}
	return l, nil
}

// availableBytes is how much an image may occupy in dir.
func availableBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	n := int64(st.Bavail) * st.Bsize / 10 * 9
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		mem, err := memAvailable()
		if err != nil {
			return 0, err
		}
		n = min(n, mem/10*8)
		if st.Blocks == 0 { // unlimited
			n = mem / 10 * 8
		}
	}
	return n, nil
}

func memAvailable() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("available memory: %w", err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("available memory: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("available memory: /proc/meminfo has no MemAvailable")
}

// LimitError says which limit an image exceeded.
type LimitError struct {
	What  string
	Limit int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%s exceeds the limit of %d (decompression bomb?)", e.What, e.Limit)
}

// usage counts one image against its limits; its layers share it.
type usage struct {
	limits  Limits
	bytes   atomic.Int64 // uncompressed stream
	content atomic.Int64 // file content, which sparse entries can make larger than the stream
	entries atomic.Int64
}

func (u *usage) addBytes(n int) error {
	if u.bytes.Add(int64(n)) > u.limits.MaxBytes {
		return &LimitError{What: "uncompressed size of the image", Limit: u.limits.MaxBytes}
	}
	return nil
}

func (u *usage) addContent(n int64) error {
	if n < 0 || u.content.Add(n) > u.limits.MaxBytes || u.content.Load() < 0 {
		return &LimitError{What: "size of the image's files", Limit: u.limits.MaxBytes}
	}
	return nil
}

func (u *usage) addEntry() error {
	if u.entries.Add(1) > u.limits.MaxEntries {
		return &LimitError{What: "number of files of the image", Limit: u.limits.MaxEntries}
	}
	return nil
}
