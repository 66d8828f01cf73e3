package collateral

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/atomicfile"
)

// disk keeps entries as files: a line of JSON, then the document, then its chain. A file is written under another name and renamed
// when it is complete; a digest over everything shows one that was damaged later. The folder can be shared by processes.
//
// A nil *disk has nothing.
type disk struct {
	dir       string
	writeFile func(name string, data []byte) error
}

// header is the first line of a file. What can be derived from the document is not taken from here.
type header struct {
	Version int       `json:"version"`
	Kind    Kind      `json:"kind"`
	Name    string    `json:"name"`
	Source  string    `json:"source"`
	Fetched time.Time `json:"fetched"`
	Refresh time.Time `json:"refresh"`
	Data    int       `json:"data"`  // bytes
	Chain   int       `json:"chain"` // bytes
	SHA256  string    `json:"sha256"`
}

const (
	diskVersion = 1
	maxHeader   = 4096
	maxFile     = maxHeader + 2*MaxDocument
	// oldTemp is when a half-written file cannot be anybody's any more.
	oldTemp = time.Hour
	suffix  = ".item"
)

func openDisk(dir string, write func(string, []byte) error) (*disk, error) {
	if write == nil {
		// The documents are public, and another account may have to read what an administrator imports.
		write = func(name string, data []byte) error { return atomicfile.Write(name, data, 0o644) }
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder for collateral: %w", err)
	}
	return &disk{dir: dir, writeFile: write}, nil
}

func (d *disk) path(key Key) string {
	sum := sha256.Sum256([]byte(key.String()))
	return filepath.Join(d.dir, string(key.Kind)+"-"+hex.EncodeToString(sum[:16])+suffix)
}

func (d *disk) write(it *Item) error {
	h := header{
		Version: diskVersion, Kind: it.Key.Kind, Name: it.Key.Name, Source: it.Source, Fetched: it.Fetched.UTC(), Refresh: it.Refresh.UTC(),
		Data: len(it.Data), Chain: len(it.Chain),
	}
	h.SHA256 = digest(it.Data, it.Chain)
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	b.Grow(len(line) + 1 + len(it.Data) + len(it.Chain))
	b.Write(line)
	b.WriteByte('\n')
	b.Write(it.Data)
	b.Write(it.Chain)
	name := d.path(it.Key)
	if err := d.writeFile(name, b.Bytes()); err != nil {
		return err
	}
	if info, err := os.Stat(name); err == nil {
		it.written = info.ModTime()
	}
	return nil
}

func digest(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (d *disk) remove(key Key) {
	if d != nil {
		_ = os.Remove(d.path(key)) // already gone is as good; one that stays is dropped at the next start
	}
}

// newer tells whether there is a file other than the one that the held item was written to or read from: another process put it there.
func (d *disk) newer(key Key, held *Item) bool {
	if d == nil {
		return false
	}
	info, err := os.Stat(d.path(key))
	return err == nil && (held == nil || !info.ModTime().Equal(held.written))
}

func (d *disk) read(key Key) (*Item, error) {
	it, err := readItem(d.path(key))
	if err != nil {
		return nil, err
	}
	if it.Key != key {
		return nil, fmt.Errorf("got the file of %s, expected that of %s", it.Key, key)
	}
	return it, nil
}

func readItem(name string) (*Item, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	it, err := decodeItem(raw)
	if err != nil {
		return nil, err
	}
	it.written = info.ModTime()
	return it, nil
}

func decodeItem(raw []byte) (*Item, error) {
	n := bytes.IndexByte(raw[:min(len(raw), maxHeader)], '\n')
	if n < 0 {
		return nil, errors.New("it has no header")
	}
	var h header
	if err := json.Unmarshal(raw[:n], &h); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	body := raw[n+1:]
	switch {
	case h.Version != diskVersion:
		return nil, fmt.Errorf("version is %d, expected %d", h.Version, diskVersion)
	case h.Data < 0 || h.Chain < 0 || h.Data > len(body) || h.Chain != len(body)-h.Data:
		return nil, fmt.Errorf("it has %d bytes after the header, expected %d and %d", len(body), h.Data, h.Chain)
	case h.SHA256 != digest(body):
		return nil, fmt.Errorf("SHA-256 is %s, expected %.64s", digest(body), h.SHA256)
	}
	it := &Item{
		Key: Key{Kind: h.Kind, Name: h.Name}, Source: h.Source, Fetched: h.Fetched, Refresh: h.Refresh,
		Data: bytes.Clone(body[:h.Data]), Chain: bytes.Clone(body[h.Data:]),
	}
	if err := it.Key.Validate(); err != nil {
		return nil, err
	}
	var err error
	if it.Issued, it.Until, err = Check(it.Key, it.Data, it.Chain); err != nil {
		return nil, err
	}
	// A header cannot stretch what the rules allow.
	if latest := refresh(it, 0); it.Refresh.After(latest) {
		it.Refresh = latest
	}
	return it, nil
}

// ReadDir lists the documents in a cache's folder and how many files are damaged. It changes nothing.
func ReadDir(dir string) (items []Item, corrupt uint64, err error) {
	d := &disk{dir: dir}
	list, corrupt, err := d.scan(math.MaxInt, math.MaxInt64, func(string) {})
	for _, it := range list {
		items = append(items, *it)
	}
	slices.SortFunc(items, func(a, b Item) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return items, corrupt, err
}

// load reads the entries, the latest first, within bounds, and cleans up: what is damaged or beyond the bounds is removed, and so are
// old half-written files.
func (d *disk) load(maxEntries int, maxBytes int64) (items []*Item, corrupt uint64, err error) {
	return d.scan(maxEntries, maxBytes, func(name string) {
		_ = os.Remove(name) // one that stays is met again at the next start
	})
}

func (d *disk) scan(maxEntries int, maxBytes int64, remove func(name string)) (items []*Item, corrupt uint64, err error) {
	type file struct {
		name string
		at   time.Time
	}
	var files []file
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the folder of collateral: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(d.dir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), ".") && strings.Contains(e.Name(), suffix):
			if time.Since(info.ModTime()) > oldTemp {
				remove(path)
			}
		case strings.HasSuffix(e.Name(), suffix):
			files = append(files, file{path, info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Or(b.at.Compare(a.at), strings.Compare(a.name, b.name)) })
	var size int64
	for _, f := range files {
		it, err := readItem(f.name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // another process dropped it
			continue
		case err == nil && d.path(it.Key) != f.name:
			err = errors.New("it has another entry's name")
		case err == nil && (len(items) >= maxEntries || size+it.size() > maxBytes):
			remove(f.name)
			continue
		}
		if err != nil {
			corrupt++
			remove(f.name)
			continue
		}
		size += it.size()
		items = append(items, it)
	}
	return items, corrupt, nil
}
