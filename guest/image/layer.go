package image

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
)

// layer is one layer of an image: where it is and what it must be.
type layer struct {
	number int // from 1, the lowest
	desc   descriptor
	diffID Digest
	typ    layerType
}

// id names the unpacked content for reuse. An encrypted layer is only the same as itself: who may name its diff_id
// in another image has not shown that the key is his.
func (l layer) id() string {
	if l.typ.encrypted {
		return l.diffID.String() + "/" + l.desc.Digest.String()
	}
	return l.diffID.String()
}

func (l layer) String() string {
	return fmt.Sprintf("layer %d (%s)", l.number, l.desc.Digest)
}

// fetch downloads, verifies, decrypts, decompresses and unpacks the layer into dir in one pass. If it returns an
// error, dir holds nothing that may be used.
func (l layer) fetch(ctx context.Context, reg *registry, keys *keyring, use *usage, dir string) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	var stages []io.Closer
	defer func() {
		cancel() // unblocks the first stage, and that the others
		for _, s := range stages {
			s.Close()
		}
	}()

	var decrypt decryptFunc
	if l.typ.encrypted { // the key first: without it nothing needs to be downloaded
		if decrypt, err = keys.unwrap(ctx, l.desc.Annotations); err != nil {
			return err
		}
	}
	body, err := reg.open(ctx, l.desc)
	if err != nil {
		return err
	}
	blob := newStage(&verifyReader{r: body, desc: l.desc, hash: l.desc.Digest.newHash()})
	stages = append(stages, blob, body)

	var compressed io.Reader = blob
	if decrypt != nil {
		plain, err := decrypt(blob)
		if err != nil {
			return err
		}
		s := newStage(plain)
		stages = append(stages, s)
		compressed = s
	}
	if err := l.expand(compressed, &stages, use, dir); err != nil {
		var limit *LimitError
		if errors.As(err, &limit) || ctx.Err() != nil {
			return err
		}
		// The stream broke. If that is because the blob is not what the manifest says, that is the reason to tell:
		// stop the other stages, read the rest of the blob and hear the verdict.
		for _, s := range slices.Backward(stages[2:]) {
			s.Close()
		}
		if _, derr := io.Copy(io.Discard, blob); derr != nil && !errors.Is(err, derr) {
			return fmt.Errorf("%w (first noticed as: %w)", derr, err)
		}
		return err
	}
	return nil
}

// expand is the second half of the pipeline: decompress, count, hash, unpack.
func (l layer) expand(compressed io.Reader, stages *[]io.Closer, use *usage, dir string) error {
	z, err := decompress(compressed, l.typ.compression)
	if err != nil {
		return err
	}
	limited := newStage(&limitReader{r: z, use: use, size: l.desc.Size})
	// The decoder may be closed only after the stage that reads from it.
	*stages = append(*stages, closeBoth{limited, z})

	sum := l.diffID.newHash()
	content := io.TeeReader(limited, sum)
	if err := unpack(content, dir, use); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, content); err != nil { // what follows the end of the archive counts for diff_id
		return err
	}
	// The decoder has reached its end; the verdicts on digest, size and HMAC come with the end of its source.
	if n, err := io.Copy(io.Discard, compressed); err != nil {
		return err
	} else if n > 0 {
		return fmt.Errorf("%d bytes follow the compressed data", n)
	}
	if err := l.diffID.check(sum); err != nil {
		return fmt.Errorf("unpacked content does not match the image configuration's diff_id: %w", err)
	}
	return nil
}

// verifyReader passes a blob on and replaces its end by an error if size or digest are not the descriptor's.
type verifyReader struct {
	r    io.Reader
	desc descriptor
	hash hash.Hash
	n    int64
	err  error
}

func (v *verifyReader) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	v.n += int64(n)
	if v.n > v.desc.Size {
		v.err = fmt.Errorf("blob %s is larger than the %d bytes its descriptor says", v.desc.Digest, v.desc.Size)
		return 0, v.err
	}
	v.hash.Write(p[:n])
	if errors.Is(err, io.EOF) {
		switch {
		case v.n < v.desc.Size:
			err = fmt.Errorf("blob %s ends after %d of %d bytes: %w", v.desc.Digest, v.n, v.desc.Size, io.ErrUnexpectedEOF)
		default:
			if derr := v.desc.Digest.check(v.hash); derr != nil {
				err = fmt.Errorf("blob %s was changed: %w", v.desc.Digest, derr)
			}
		}
	}
	v.err = err
	return n, err
}

// limitReader stops a decompression bomb.
type limitReader struct {
	r    io.Reader
	use  *usage
	size int64 // of the compressed layer
	n    int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	l.n += int64(n)
	if lerr := l.use.addBytes(n); lerr != nil {
		return 0, lerr
	}
	if l.n > ratioThreshold && l.n/l.size > l.use.limits.MaxRatio {
		return 0, &LimitError{What: fmt.Sprintf("compression ratio of a layer of %d bytes", l.size), Limit: l.use.limits.MaxRatio}
	}
	return n, err
}

// closeBoth closes a stage, then what it reads from.
type closeBoth struct{ first, second io.Closer }

func (c closeBoth) Close() error { return errors.Join(c.first.Close(), c.second.Close()) }
