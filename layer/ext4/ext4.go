// Package ext4 makes the compact ext4 file system of a layer that Microsoft's hcsshim makes (tar2ext4), with hcsshim's own library:
// root hashes have to be those that Azure Container Instances compute. Its rules for names, whiteouts and links are the library's.
package ext4

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/Microsoft/hcsshim/ext4/dmverity"
	"github.com/Microsoft/hcsshim/ext4/tar2ext4"

	"github.com/cloister/cloister/layer/internal/limit"
)

// Limits of a stream: the library keeps every entry in memory.
const (
	maxEntries = 1_000_000
	maxText    = 256 << 20 // bytes of names, link targets and PAX records
	maxPath    = 4095
)

const readSize = 1 << 20

// LimitError says which limit a stream exceeds.
type LimitError = limit.Error

// File is where the file system goes. It must be empty.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// FromTar reads a tar stream up to the end of the archive and writes the file system, of at most maxSize bytes. It returns the size
// in bytes, a multiple of 4096.
func FromTar(ctx context.Context, stream io.Reader, f File, maxSize int64) (size int64, err error) {
	defer func() {
		if p := recover(); p != nil { // the library panics at some streams
			err = fmt.Errorf("the ext4 library cannot take the layer: %v", p)
		}
	}()
	pr, pw := io.Pipe()
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		if err := count(pr); err != nil {
			pr.CloseWithError(err)
			return
		}
		_, err := io.Copy(io.Discard, pr)
		pr.CloseWithError(err)
	}()
	defer func() {
		pw.Close()
		<-counted
	}()
	// The library uses a reader with such a buffer as it is.
	in := bufio.NewReaderSize(io.TeeReader(ctxReader{ctx, stream}, pw), readSize)
	s := &seeker{f: f, max: maxSize}
	// The reserved size shapes the file system: it is the one with which hcsshim computes root hashes.
	if err := tar2ext4.ConvertTarToExt4(in, s, tar2ext4.ConvertWhiteout, tar2ext4.MaximumDiskSize(dmverity.RecommendedVHDSizeGB)); err != nil {
		return 0, err
	}
	s.pos = 0
	size, block, err := tar2ext4.Ext4FileSystemSize(s)
	if err != nil {
		return 0, err
	}
	if size != s.end || block != 4096 {
		return 0, fmt.Errorf("the ext4 library wrote %d bytes and says %d, in blocks of %d", s.end, size, block)
	}
	return size, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// count reads the archive beside the library and fails where the library would need too much memory. What is wrong with the archive
// otherwise is for the library to say.
func count(r io.Reader) error {
	entries, text := 0, 0
	for t := tar.NewReader(r); ; {
		hdr, err := t.Next()
		if err != nil {
			return nil
		}
		if len(hdr.Name) > maxPath || len(hdr.Linkname) > maxPath {
			return &LimitError{What: "length of a path of the layer", Limit: maxPath}
		}
		if entries++; entries > maxEntries {
			return &LimitError{What: "number of entries of the layer", Limit: maxEntries}
		}
		text += len(hdr.Name) + len(hdr.Linkname)
		for key, value := range hdr.PAXRecords {
			text += len(key) + len(value)
		}
		if text > maxText {
			return &LimitError{What: "size of the layer's names, link targets and PAX records", Limit: maxText}
		}
	}
}

// seeker gives a file the position that the library wants, and a limit.
type seeker struct {
	f        File
	pos, end int64
	max      int64
}

func (s *seeker) Read(b []byte) (int, error) {
	n, err := s.f.ReadAt(b, s.pos)
	s.pos += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (s *seeker) Write(b []byte) (int, error) {
	if s.pos+int64(len(b)) > s.max {
		return 0, &LimitError{What: "size of the layer's file system", Limit: s.max}
	}
	n, err := s.f.WriteAt(b, s.pos)
	s.pos += int64(n)
	s.end = max(s.end, s.pos)
	return n, err
}

func (s *seeker) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += s.pos
	case io.SeekEnd:
		offset += s.end
	}
	if offset < 0 {
		return 0, errors.New("seeking before the start")
	}
	s.pos = offset
	return offset, nil
}
