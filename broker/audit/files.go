package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const suffix = ".jsonl"

// part is one file of a chain. The first entry of a full file stands in its name; that of the current one is 0 until it is known.
type part struct {
	path  string
	first uint64
}

// fullName is the name a current file gets when it is full.
func fullName(path string, first uint64) string {
	return fmt.Sprintf("%s.%012d%s", strings.TrimSuffix(path, suffix), first, suffix)
}

// fullFiles lists the full files of a chain, oldest first.
func fullFiles(path string) ([]part, error) {
	list, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("listing audit files: %w", err)
	}
	base := strings.TrimSuffix(filepath.Base(path), suffix) + "."
	var parts []part
	for _, e := range list {
		name, ok := strings.CutPrefix(e.Name(), base)
		if !ok || !e.Type().IsRegular() {
			continue
		}
		if first, ok := number(name); ok {
			parts = append(parts, part{filepath.Join(filepath.Dir(path), e.Name()), first})
		}
	}
	slices.SortFunc(parts, func(a, b part) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	return parts, nil
}

// number reads what stands between the base of a name and its end.
func number(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) < 12 || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil && n > 0 && fmt.Sprintf("%012d", n) == digits
}

// chains finds the current files (which need not exist) of all chains in a folder.
func chains(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing audit files: %w", err)
	}
	var found []string
	for _, e := range list {
		name := e.Name()
		if !e.Type().IsRegular() || !strings.HasPrefix(name, "audit") || !strings.HasSuffix(name, suffix) {
			continue
		}
		if isFull(name) {
			parts := strings.Split(name, ".")
			name = strings.Join(parts[:len(parts)-2], ".") + suffix
		}
		current := filepath.Join(dir, name)
		if !slices.Contains(found, current) {
			found = append(found, current)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("folder %s holds no audit file (audit*.jsonl): %w", dir, fs.ErrNotExist)
	}
	slices.Sort(found)
	return found, nil
}

// lastLine reads the last entry of a file and checks its hash. A file without entries gives nil; a torn last line gives
// io.ErrUnexpectedEOF.
func lastLine(path string) (*Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return nil, err
	}
	from := max(0, size-maxLine-1)
	tail, err := io.ReadAll(io.NewSectionReader(f, from, size-from))
	if err != nil {
		return nil, err
	}
	if tail[len(tail)-1] != '\n' {
		return nil, io.ErrUnexpectedEOF
	}
	begin := bytes.LastIndexByte(tail[:len(tail)-1], '\n') + 1
	if begin == 0 && from > 0 {
		return nil, fmt.Errorf("the last line has more than %d bytes", maxLine)
	}
	return parseLine(tail[begin:])
}

// parseLine reads one line and checks its hash.
func parseLine(line []byte) (*Entry, error) {
	var e Entry
	if err := json.Unmarshal(line, &e); err != nil {
		return nil, err
	}
	hash, want, err := encode(e)
	if err != nil {
		return nil, err
	}
	if e.Hash != hash || !bytes.Equal(line, want) {
		return nil, fmt.Errorf("line %d was changed: its hash is %.16s, its content gives %.16s", e.Seq, e.Hash, hash)
	}
	return &e, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
