package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// verify reads lines from a mark on, checks the chain, and returns the offset up to which it is good. A last line without
// its line feed gives io.ErrUnexpectedEOF.
func verify(r io.Reader, from mark, fn func(e Entry, end int64) error) (int64, error) {
	in := bufio.NewReaderSize(r, maxLine+1)
	good, seq, prev := from.offset, from.seq, from.prev
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			if len(line) == 0 {
				return good, nil
			}
			return good, fmt.Errorf("entry %d has no end: %w", seq+1, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return good, fmt.Errorf("reading entry %d: %w", seq+1, err)
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return good, fmt.Errorf("entry %d: %w", seq+1, err)
		}
		if err := follows(e, seq, prev, line); err != nil {
			return good, err
		}
		good += int64(len(line))
		if err := fn(e, good); err != nil {
			return good, err
		}
		seq, prev = e.Seq, e.Hash
	}
}

// follows checks that an entry comes after one with a number and hash, and that nothing of it was changed. The line, where there is
// one, must be exactly that of the entry.
func follows(e Entry, seq uint64, prev string, line []byte) error {
	if e.Seq != seq+1 {
		return fmt.Errorf("entry %d has number %d: a line is missing, repeated or moved", seq+1, e.Seq)
	}
	if e.Prev != prev {
		return fmt.Errorf("entry %d does not follow the one before it: prev is %.16s, want %.16s", e.Seq, e.Prev, prev)
	}
	hash, want, err := encode(e)
	if err != nil {
		return err
	}
	if e.Hash != hash || line != nil && !bytes.Equal(line, want) {
		return fmt.Errorf("entry %d was changed: its hash is %.16s, its content gives %.16s", e.Seq, e.Hash, hash)
	}
	return nil
}

// firstMark is where reading a file begins: before its first entry, which names the one before it. An empty file gives io.EOF, one
// with nothing but half a line io.ErrUnexpectedEOF.
func firstMark(path string) (mark, error) {
	f, err := os.Open(path)
	if err != nil {
		return mark{}, err
	}
	defer f.Close()
	return markOf(f)
}

// markOf is firstMark of an open file; reading then begins there again.
func markOf(f *os.File) (mark, error) {
	line, err := bufio.NewReaderSize(f, maxLine+1).ReadSlice('\n')
	if errors.Is(err, io.EOF) && len(line) > 0 {
		err = io.ErrUnexpectedEOF
	}
	var e Entry
	if err == nil {
		err = json.Unmarshal(line, &e)
	}
	if err == nil && e.Seq == 0 {
		err = errors.New("its first entry has no number")
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return mark{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return mark{seq: e.Seq - 1, prev: e.Prev}, nil
}
