package initdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Annotation is the pod annotation that carries initdata.
const Annotation = "io.katacontainers.config.hypervisor.cc_init_data"

const (
	magic      = "initdata"
	headerSize = len(magic) + 8
	sectorSize = 512
)

// ErrNoInitdata says that a carrier is there and holds no initdata.
var ErrNoInitdata = errors.New("no initdata")

// EncodeAnnotation is the annotation's value for a document.
func EncodeAnnotation(text []byte) string {
	return base64.StdEncoding.EncodeToString(compress(text))
}

// DecodeAnnotation gives the document in an annotation's value. An empty value is
// ErrNoInitdata.
func DecodeAnnotation(value string) ([]byte, error) {
	value = strings.TrimSpace(value)
	if value == "" {
		return nil, ErrNoInitdata
	}
	if n := base64.StdEncoding.DecodedLen(len(value)); n > MaxCompressed {
		return nil, fmt.Errorf("reading the initdata annotation: %d bytes exceed the limit of %d", n, MaxCompressed)
	}
	packed, err := base64.StdEncoding.Strict().DecodeString(value)
	if err != nil {
		return nil, fmt.Errorf("reading the initdata annotation: %w", err)
	}
	text, err := decompress(packed)
	if err != nil {
		return nil, fmt.Errorf("reading the initdata annotation: %w", err)
	}
	return text, nil
}

// EncodeDevice is the content of the block device that carries a document.
func EncodeDevice(text []byte) []byte {
	packed := compress(text)
	size := headerSize + len(packed)
	image := make([]byte, 0, size+sectorSize)
	image = append(image, magic...)
	image = binary.LittleEndian.AppendUint64(image, uint64(len(packed)))
	image = append(image, packed...)
	return append(image, make([]byte, (sectorSize-size%sectorSize)%sectorSize)...)
}

// DecodeDevice gives the document on a block device. A device that does not start
// with the magic is ErrNoInitdata.
func DecodeDevice(r io.Reader) ([]byte, error) {
	header := make([]byte, headerSize)
	n, err := io.ReadFull(r, header)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("reading the initdata device: %w", err)
	}
	if n < len(magic) || string(header[:len(magic)]) != magic {
		return nil, ErrNoInitdata
	}
	if n < headerSize {
		return nil, errors.New("reading the initdata device: it ends inside the header")
	}
	size := binary.LittleEndian.Uint64(header[len(magic):])
	if size > MaxCompressed {
		return nil, fmt.Errorf("reading the initdata device: %d bytes exceed the limit of %d", size, MaxCompressed)
	}
	packed := make([]byte, size)
	if _, err := io.ReadFull(r, packed); err != nil {
		return nil, fmt.Errorf("reading %d bytes of the initdata device: %w", size, err)
	}
	text, err := decompress(packed)
	if err != nil {
		return nil, fmt.Errorf("reading the initdata device: %w", err)
	}
	return text, nil
}

// compress leaves name and time out of the header, so equal documents give equal
// bytes.
func compress(text []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(text) // a bytes.Buffer accepts everything
	w.Close()
	return b.Bytes()
}

// decompress accepts one gzip member and nothing after it: some readers stop after
// the first member, and all must see the same document.
func decompress(packed []byte) ([]byte, error) {
	in := bytes.NewReader(packed)
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	z.Multistream(false)
	text, err := io.ReadAll(io.LimitReader(z, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("decompressing: %w", err)
	}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("decompressing: more than %d bytes", MaxSize)
	}
	if in.Len() != 0 {
		return nil, fmt.Errorf("decompressing: %d bytes follow the document", in.Len())
	}
	return text, nil
}
