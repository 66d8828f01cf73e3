package bundle

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/cloister/cloister/broker/collateral"
)

// unpack reads the plain files of a zip, tar or tar.gz file, by name.
func unpack(raw []byte) (map[string][]byte, error) {
	u := unpacker{files: map[string][]byte{}}
	switch {
	case bytes.HasPrefix(raw, []byte("PK\x03\x04")):
		return u.files, u.zip(raw)
	case bytes.HasPrefix(raw, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		return u.files, u.tar(r)
	}
	return u.files, u.tar(bytes.NewReader(raw))
}

type unpacker struct {
	files map[string][]byte
	total int64
}

func (u *unpacker) zip(raw []byte) error {
	r, err := zip.NewReader(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return err
	}
	for _, f := range r.File {
		if !f.Mode().IsRegular() {
			continue
		}
		body, err := f.Open()
		if err != nil {
			return fmt.Errorf("%.64q: %w", f.Name, err)
		}
		err = u.add(f.Name, body)
		body.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) tar(src io.Reader) error {
	r := tar.NewReader(src)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is neither JSON, zip, tar nor tar.gz: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := u.add(h.Name, r); err != nil {
			return err
		}
	}
}

func (u *unpacker) add(name string, body io.Reader) error {
	clean := path.Clean(strings.TrimPrefix(name, "./"))
	if _, twice := u.files[clean]; twice {
		return fmt.Errorf("it has %.64q twice", name)
	}
	if len(u.files) > 2*maxItems {
		return fmt.Errorf("it has more than %d files", 2*maxItems)
	}
	limit := int64(max(collateral.MaxDocument, maxManifest))
	data, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return fmt.Errorf("%.64q: %w", name, err)
	}
	if u.total += int64(len(data)); int64(len(data)) > limit || u.total > maxTotal {
		return fmt.Errorf("%.64q: a file may have %d bytes, all together %d", name, limit, maxTotal)
	}
	u.files[clean] = data
	return nil
}
