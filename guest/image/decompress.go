package image

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds a zstd decoder's memory. 8 MiB is what decoders must support (RFC 8878); --long images ask
// for more and are refused.
const maxZstdWindow = 8 << 20

// decompress returns the plain form of r. Bytes after the compressed data are an error.
func decompress(r io.Reader, compression string) (io.ReadCloser, error) {
	switch compression {
	case "":
		return io.NopCloser(r), nil
	case "gzip":
		z, err := gzip.NewReader(bufio.NewReaderSize(r, 64<<10)) // multi-member, like every OCI runtime
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", noEOF(err))
		}
		return &namedReader{name: "gzip", r: z, close: z.Close}, nil
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderMaxMemory(1<<40))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return &namedReader{name: "zstd", r: z, close: func() error { z.Close(); return nil }}, nil
	}
	return nil, fmt.Errorf("unknown compression %q", compression)
}

// namedReader says in errors which decoder they come from.
type namedReader struct {
	name  string
	r     io.Reader
	close func() error
}

func (n *namedReader) Read(p []byte) (int, error) {
	m, err := n.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s: %w", n.name, err)
	}
	return m, err
}

func (n *namedReader) Close() error { return n.close() }

// noEOF makes an early end an error that io.Copy does not take for success.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
