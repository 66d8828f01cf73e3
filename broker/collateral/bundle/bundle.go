// Package bundle carries collateral in files, to brokers that reach no vendor and into the cache of those that do.
//
// Three forms are read: our own bundle, which is a folder or a tar, tar.gz or zip file with a manifest and digests; the JSON file that
// Intel's PCS client tool writes (also as a file:// address); and the folder of VCEKs that Trustee calls OfflineStore.
// A bundle with one damaged document is refused as a whole: it is not what its maker made. Documents past their end are no damage.
package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/collateral"
)

// Bounds of a bundle.
const (
	maxTotal    = 256 << 20 // bytes
	maxItems    = 20_000
	maxManifest = 16 << 20 // bytes
)

const (
	manifestFile = "manifest.json"
	format       = "cloister-collateral"
	version      = 1
)

// manifest lists the documents of our own form.
type manifest struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	Items   []entry   `json:"items"`
}

type entry struct {
	Kind        collateral.Kind `json:"kind"`
	Name        string          `json:"name"`
	File        string          `json:"file"`
	SHA256      string          `json:"sha256"`
	ChainFile   string          `json:"chain_file,omitempty"`
	ChainSHA256 string          `json:"chain_sha256,omitempty"`
	Source      string          `json:"source"`
	Fetched     time.Time       `json:"fetched"`
	// ValidUntil is for readers; what counts is in the document.
	ValidUntil time.Time `json:"valid_until,omitzero"`
}

// Source is files as a source of a cache.
type Source interface {
	collateral.Source
	// Items lists every document, for importing.
	Items() ([]collateral.Item, error)
}

// Open reads what is at a path, whatever the form.
func Open(path string) (Source, error) {
	path = strings.TrimPrefix(path, "file://")
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("collateral bundle: %w", err)
	}
	var src Source
	if info.IsDir() {
		src, err = openDir(path)
	} else {
		src, err = openFile(path, info.Size())
	}
	if err != nil {
		return nil, fmt.Errorf("collateral bundle %s: %w", path, err)
	}
	return src, nil
}

func openDir(path string) (Source, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	text, err := readFile(root.FS(), manifestFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		if info, err := root.Stat(storeFolder); err == nil && info.IsDir() {
			return &amdStore{path: path, root: root}, nil
		}
		defer root.Close()
		return nil, fmt.Errorf("the folder has neither %s (a bundle) nor a folder %s (an offline store of VCEKs)", manifestFile, storeFolder)
	}
	defer root.Close()
	if err != nil {
		return nil, err
	}
	return parse(path, text, func(name string) ([]byte, error) { return readFile(root.FS(), name, collateral.MaxDocument) })
}

// openFile tells the forms by their beginning, not by their name.
func openFile(path string, size int64) (Source, error) {
	if size > maxTotal {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", size, maxTotal)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(bytes.TrimSpace(raw[:min(len(raw), 64)]), []byte("{")) {
		return parsePCS(path, raw)
	}
	files, err := unpack(raw)
	if err != nil {
		return nil, err
	}
	text, ok := files[manifestFile]
	if !ok {
		return nil, fmt.Errorf("it has no %s", manifestFile)
	}
	return parse(path, text, func(name string) ([]byte, error) {
		if data, ok := files[name]; ok {
			return data, nil
		}
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	})
}

func readFile(fsys fs.FS, name string, limit int64) ([]byte, error) {
	info, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s is no plain file of at most %d bytes", name, limit)
	}
	return fs.ReadFile(fsys, name)
}

// parse reads a manifest and every document it lists.
func parse(path string, text []byte, read func(name string) ([]byte, error)) (Source, error) {
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestFile, err)
	}
	switch {
	case m.Format != format:
		return nil, fmt.Errorf("format is %.32q, expected %q", m.Format, format)
	case m.Version != version:
		return nil, fmt.Errorf("version is %d, expected %d", m.Version, version)
	case len(m.Items) > maxItems:
		return nil, fmt.Errorf("it lists %d documents, at most %d are read", len(m.Items), maxItems)
	}
	b := newMemory("bundle " + path)
	total := 0
	for _, e := range m.Items {
		it := collateral.Item{Key: collateral.Key{Kind: e.Kind, Name: e.Name}, Source: e.Source, Fetched: e.Fetched}
		var err error
		if it.Data, err = verified(read, e.File, e.SHA256); err != nil {
			return nil, fmt.Errorf("%s: %w", it.Key, err)
		}
		if e.ChainFile != "" {
			if it.Chain, err = verified(read, e.ChainFile, e.ChainSHA256); err != nil {
				return nil, fmt.Errorf("%s: %w", it.Key, err)
			}
		}
		if total += len(it.Data) + len(it.Chain); total > maxTotal {
			return nil, fmt.Errorf("its documents have more than %d bytes", maxTotal)
		}
		if err := b.add(it); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func verified(read func(string) ([]byte, error), name, want string) ([]byte, error) {
	data, err := read(name)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	if got := hex.EncodeToString(sum[:]); got != want {
		return nil, fmt.Errorf("SHA-256 of %s is %s, the manifest has %.64s", name, got, want)
	}
	return data, nil
}

// memory is documents at hand.
type memory struct {
	name  string
	items map[collateral.Key]collateral.Item
	order []collateral.Key
}

func newMemory(name string) *memory {
	return &memory{name: name, items: map[collateral.Key]collateral.Item{}}
}

// add checks a document. Of two with one key the later one wins.
func (m *memory) add(it collateral.Item) error {
	if err := it.Key.Validate(); err != nil {
		return err
	}
	var err error
	if it.Issued, it.Until, err = collateral.Check(it.Key, it.Data, it.Chain); err != nil {
		return fmt.Errorf("%s: %w", it.Key, err)
	}
	if _, ok := m.items[it.Key]; !ok {
		m.order = append(m.order, it.Key)
	}
	m.items[it.Key] = it
	return nil
}

// Name is part of collateral.Source.
func (m *memory) Name() string { return m.name }

// Items is part of Source.
func (m *memory) Items() ([]collateral.Item, error) {
	out := make([]collateral.Item, 0, len(m.order))
	for _, key := range m.order {
		out = append(out, m.items[key])
	}
	return out, nil
}

// Fetch is part of collateral.Source. Where early TCB levels are asked for and only the standard ones are there, these are given, as
// upstream does.
func (m *memory) Fetch(_ context.Context, q collateral.Query) (*collateral.Answer, error) {
	it, ok := m.items[q.Key]
	if !ok && (q.Key.Kind == collateral.TCBInfo || q.Key.Kind == collateral.QEIdentity) {
		if name, early := strings.CutSuffix(q.Key.Name, "/early"); early {
			it, ok = m.items[collateral.Key{Kind: q.Key.Kind, Name: name + "/standard"}]
		}
	}
	if !ok {
		return nil, collateral.ErrNotFound
	}
	return &collateral.Answer{Data: it.Data, Chain: it.Chain}, nil
}

// IsArchive tells whether a bundle of that name is written as one file.
func IsArchive(path string) bool {
	for _, ext := range []string{".tar", ".tar.gz", ".tgz", ".zip"} {
		if strings.HasSuffix(filepath.Base(path), ext) {
			return true
		}
	}
	return false
}
