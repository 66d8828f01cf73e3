package reload

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	maxBytes   = 64 << 20 // of the files of one item
	maxEntries = 10_000
	maxDepth   = 8
)

// fingerprint stands for the content of some files.
type fingerprint [sha256.Size]byte

// look returns the fingerprint of files and folders. What cannot be read counts as its error: reading it will fail in the same way
// and say so. Bounds keep a folder that was given by mistake from being read as a whole; beyond them, changes are not noticed.
func look(paths []string) fingerprint {
	l := looker{sum: sha256.New(), bytes: maxBytes, entries: maxEntries}
	for _, p := range paths {
		if strings.HasPrefix(p, "https://") {
			continue
		}
		l.path(strings.TrimPrefix(p, "file://"), 0)
	}
	return fingerprint(l.sum.Sum(nil))
}

type looker struct {
	sum     hash.Hash
	bytes   int64
	entries int
}

func (l *looker) note(kind, text string) {
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(text)))
	fmt.Fprintf(l.sum, "%s:%s%s", kind, size[:], text)
}

func (l *looker) path(name string, depth int) {
	if l.entries--; l.entries < 0 || depth > maxDepth {
		return
	}
	l.note("path", name)
	info, err := os.Stat(name) // follows symbolic links
	switch {
	case err != nil:
		l.note("error", err.Error())
	case info.IsDir():
		list, err := os.ReadDir(name)
		if err != nil {
			l.note("error", err.Error())
			return
		}
		for _, e := range list {
			// Kubernetes keeps the generations of a volume in hidden folders, which the visible names lead into.
			if !strings.HasPrefix(e.Name(), ".") {
				l.path(filepath.Join(name, e.Name()), depth+1)
			}
		}
	case info.Mode().IsRegular():
		l.file(name)
	default:
		l.note("kind", info.Mode().Type().String()) // a pipe or a device would hang the reader
	}
}

func (l *looker) file(name string) {
	f, err := os.Open(name)
	if err != nil {
		l.note("error", err.Error())
		return
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(f, l.bytes))
	l.bytes -= n
	if err != nil {
		l.note("error", err.Error())
		return
	}
	l.note("content", string(sum.Sum(nil)))
}
