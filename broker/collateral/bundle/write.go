package bundle

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/atomicfile"
	"github.com/cloister/cloister/broker/collateral"
)

// file is one file of a bundle.
type file struct {
	name string
	data []byte
}

// Write makes a bundle of documents: one file when the name ends in .tar, .tar.gz, .tgz or .zip, else a folder, which must not exist.
// It is there as a whole or not at all. The same documents and time give the same bytes.
func Write(path string, items []collateral.Item, created time.Time) error {
	files, err := layout(items, created)
	if err != nil {
		return err
	}
	if !IsArchive(path) {
		return writeDir(path, files)
	}
	var b bytes.Buffer
	if strings.HasSuffix(path, ".zip") {
		err = writeZip(&b, files)
	} else if strings.HasSuffix(path, ".tar") {
		err = writeTar(&b, files, created)
	} else {
		z := gzip.NewWriter(&b)
		err = errors.Join(writeTar(z, files, created), z.Close())
	}
	if err != nil {
		return err
	}
	return atomicfile.Write(path, b.Bytes(), 0o644)
}

func layout(items []collateral.Item, created time.Time) ([]file, error) {
	items = slices.Clone(items)
	slices.SortFunc(items, func(a, b collateral.Item) int {
		return cmp.Or(strings.Compare(string(a.Key.Kind), string(b.Key.Kind)), strings.Compare(a.Key.Name, b.Key.Name))
	})
	m := manifest{Format: format, Version: version, Created: created.UTC(), Items: []entry{}}
	var files []file
	for _, it := range items {
		if err := it.Key.Validate(); err != nil {
			return nil, err
		}
		base := string(it.Key.Kind) + "/" + it.Key.Name
		e := entry{
			Kind: it.Key.Kind, Name: it.Key.Name, File: base + extension(it.Key.Kind), SHA256: digest(it.Data),
			Source: it.Source, Fetched: it.Fetched.UTC(), ValidUntil: it.Until.UTC(),
		}
		files = append(files, file{e.File, it.Data})
		if len(it.Chain) > 0 {
			e.ChainFile, e.ChainSHA256 = base+".chain.pem", digest(it.Chain)
			files = append(files, file{e.ChainFile, it.Chain})
		}
		m.Items = append(m.Items, e)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	return append([]file{{manifestFile, append(text, '\n')}}, files...), nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func extension(k collateral.Kind) string {
	switch k {
	case collateral.AMDChain:
		return ".pem"
	case collateral.TCBInfo, collateral.QEIdentity:
		return ".json"
	case collateral.RIM:
		return ".xml"
	}
	return ".der"
}

// writeDir fills a folder beside the target and renames it.
func writeDir(path string, files []file) (err error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("writing the bundle: %s exists already", path)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(filepath.Clean(path)), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing the bundle: %w", errors.Join(err, os.RemoveAll(tmp)))
		}
	}()
	for _, f := range files {
		name := filepath.Join(tmp, filepath.FromSlash(f.name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := atomicfile.Write(name, f.data, 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func writeTar(w io.Writer, files []file, created time.Time) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.data)), ModTime: created.Truncate(time.Second),
			Format: tar.FormatPAX,
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	return t.Close()
}

func writeZip(w io.Writer, files []file) error {
	z := zip.NewWriter(w)
	for _, f := range files {
		part, err := z.Create(f.name)
		if err != nil {
			return err
		}
		if _, err := part.Write(f.data); err != nil {
			return err
		}
	}
	return z.Close()
}
