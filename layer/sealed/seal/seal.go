// Package seal makes sealed layers of plain ones, and opens them again where there is no kernel to do it: on the author's desk and in tests.
package seal

import (
	"context"
	"crypto/aes"
	"fmt"
	"io"

	"golang.org/x/crypto/xts"

	"github.com/cloister/cloister/layer/sealed"
	"github.com/cloister/cloister/layer/verity"
)

// Layer is what was made.
type Layer struct {
	Root       verity.Root
	HashOffset int64 // bytes of ciphertext; the superblock is there
	Size       int64 // of the whole, bytes
}

// piece is how much is read and encrypted at once; a multiple of what the tree takes at once.
const piece = 1 << 20

// Seal encrypts size bytes of an EROFS image, a multiple of 4096, to out, and writes superblock and tree behind them. salt has 32 random
// bytes, which must never be used again with the same key for other data.
func Seal(ctx context.Context, plain io.ReaderAt, size int64, out io.WriterAt, key, salt []byte) (Layer, error) {
	fail := func(err error) (Layer, error) { return Layer{}, fmt.Errorf("sealing a layer: %w", err) }
	if size <= 0 || size%sealed.BlockSize != 0 {
		return fail(fmt.Errorf("%d bytes, expected a multiple of %d", size, sealed.BlockSize))
	}
	c, err := newCipher(key, salt)
	if err != nil {
		return fail(err)
	}
	params := verity.Params{DataBlock: sealed.BlockSize, HashBlock: sealed.BlockSize, Salt: salt}
	tree, err := verity.NewTree(params)
	if err != nil {
		return fail(err)
	}
	buf := make([]byte, piece)
	for at := int64(0); at < size; at += piece {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		b := buf[:min(piece, size-at)]
		if err := readFull(plain, b, at); err != nil {
			return fail(err)
		}
		first := at / sealed.BlockSize
		for i := 0; i < len(b); i += sealed.BlockSize {
			block := b[i : i+sealed.BlockSize]
			c.Encrypt(block, block, uint64(first)+uint64(i/sealed.BlockSize))
		}
		if err := tree.Add(first, b); err != nil {
			return fail(err)
		}
		if _, err := out.WriteAt(b, at); err != nil {
			return fail(err)
		}
	}
	blocks := size / sealed.BlockSize
	root, err := tree.Finish(blocks)
	if err != nil {
		return fail(err)
	}
	super, err := verity.NewSuperblock(params, blocks, root).Marshal()
	if err != nil {
		return fail(err)
	}
	if _, err := out.WriteAt(super, size); err != nil {
		return fail(err)
	}
	n, err := tree.WriteAt(out, size+int64(len(super)))
	if err != nil {
		return fail(err)
	}
	return Layer{Root: root, HashOffset: size, Size: size + int64(len(super)) + n}, nil
}

// Open checks a sealed layer against its root hash and returns a reader of the EROFS image in it.
func Open(ctx context.Context, layer io.ReaderAt, hashOffset int64, root verity.Root, key []byte) (*io.SectionReader, error) {
	super, err := verity.Check(ctx, layer, hashOffset, root, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a sealed layer: %w", err)
	}
	c, err := newCipher(key, super.Salt)
	if err != nil {
		return nil, fmt.Errorf("opening a sealed layer: %w", err)
	}
	return io.NewSectionReader(&plainReader{layer, c}, 0, hashOffset), nil
}

func newCipher(key, salt []byte) (*xts.Cipher, error) {
	k, err := sealed.LayerKey(key, salt)
	if err != nil {
		return nil, err
	}
	return xts.NewCipher(aes.NewCipher, k)
}

// plainReader decrypts what is read.
type plainReader struct {
	r io.ReaderAt
	c *xts.Cipher
}

func (p *plainReader) ReadAt(b []byte, at int64) (n int, err error) {
	block := make([]byte, sealed.BlockSize)
	for n < len(b) {
		number := (at + int64(n)) / sealed.BlockSize
		if err := readFull(p.r, block, number*sealed.BlockSize); err != nil {
			return n, err
		}
		p.c.Decrypt(block, block, uint64(number))
		n += copy(b[n:], block[(at+int64(n))%sealed.BlockSize:])
	}
	return n, nil
}

func readFull(r io.ReaderAt, b []byte, at int64) error {
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
