// Package audit records every decision of the broker in a file that can only grow.
//
// One JSON object per line. Each line carries the SHA-256 of the line before it, so an edited, removed or reordered line
// breaks the chain at that point; cutting lines off the end is noticed by comparing the last hash with one seen earlier
// (the status endpoint shows it). A line is on disk before Append returns, and a caller that cannot append must not act:
// no secret leaves the broker without its record. Records name secrets by path and never hold their content.
package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// The decisions.
const (
	Allow = "allow"
	Deny  = "deny"
	Error = "error"
)

// Entry is one decision. Seq, Time, Prev and Hash are set by Append.
type Entry struct {
	Seq         uint64    `json:"seq"`
	Time        time.Time `json:"time"`
	Event       string    `json:"event"`
	Decision    string    `json:"decision"`
	RequestID   string    `json:"request_id"`
	Remote      string    `json:"remote,omitempty"`
	Session     string    `json:"session,omitempty"`
	TEE         string    `json:"tee,omitempty"`
	Attestation string    `json:"attestation,omitempty"`
	Subject     string    `json:"subject,omitempty"`
	Policy      string    `json:"policy,omitempty"`
	Status      string    `json:"status,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	Prev        string    `json:"prev"`
	Hash        string    `json:"hash,omitempty"`
}

// maxLine bounds one record when reading; Append cuts reasons well below it.
const (
	maxLine   = 64 << 10
	maxReason = 4 << 10
	maxField  = 1 << 10
)

var genesis = hex.EncodeToString(make([]byte, sha256.Size))

// Log is an open audit file.
type Log struct {
	path string
	now  func() time.Time

	mu     sync.Mutex
	file   *os.File
	size   int64
	seq    uint64
	last   string
	marks  []mark
	broken error

	queue   []*waiting
	writing bool // somebody is at the file
}

// mark is a place in the file where reading can begin: what was verified up to there.
type mark struct {
	offset int64
	seq    uint64
	prev   string
}

// markEvery is how many entries apart marks are.
const markEvery = 1024

// Open opens the file, making it if needed, and checks the whole chain. A half-written last line, which a crash can
// leave, is cut off: its decision was never acted on. Any other damage is an error.
func Open(path string, now func() time.Time) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening audit log: %w", err)
	}
	l := &Log{path: path, now: now, file: f, last: genesis, marks: []mark{{prev: genesis}}}
	good, err := verify(f, mark{prev: genesis}, func(e Entry, end int64) error { l.passed(e, end); return nil })
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.Join(fmt.Errorf("checking audit log %s: %w", path, err), f.Close())
	}
	if err != nil {
		if err := f.Truncate(good); err != nil {
			return nil, errors.Join(fmt.Errorf("cutting half a line off the audit log: %w", err), f.Close())
		}
	}
	if _, err := f.Seek(good, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("opening audit log: %w", err), f.Close())
	}
	l.size = good
	return l, nil
}

// passed notes an entry that ends at an offset.
func (l *Log) passed(e Entry, end int64) {
	l.seq, l.last, l.size = e.Seq, e.Hash, end
	if e.Seq%markEvery == 0 {
		l.marks = append(l.marks, mark{offset: end, seq: e.Seq, prev: e.Hash})
	}
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

// waiting is an entry on its way to the disk.
type waiting struct {
	entry Entry
	done  chan error
}

// maxBatch is how many entries are written at once.
const maxBatch = 256

// Append writes one entry and returns when it is on disk. Entries that arrive while others are being written wait and then go to
// the disk together, since it is the wait for the disk that costs.
func (l *Log) Append(ctx context.Context, e Entry) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("writing audit log: %w", err)
	}
	clean(&e)
	w := &waiting{entry: e, done: make(chan error, 1)}
	l.mu.Lock()
	l.queue = append(l.queue, w)
	if !l.writing {
		l.writing = true
		go l.flushAll()
	}
	l.mu.Unlock()
	return <-w.done
}

// flushAll writes until no entry waits. It is nobody's request, which would have to stay for the entries of all that come later.
func (l *Log) flushAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) > 0 {
		n := min(len(l.queue), maxBatch)
		batch := l.queue[:n:n]
		l.queue = l.queue[n:]
		l.flush(batch)
	}
	l.queue, l.writing = nil, false
}

// flush numbers, chains and writes a batch. It holds the lock except while it waits for the disk.
func (l *Log) flush(batch []*waiting) {
	if l.broken != nil {
		for _, w := range batch {
			w.done <- fmt.Errorf("writing audit log: an earlier write failed: %w", l.broken)
		}
		return
	}
	var lines []byte
	var passed []Entry
	var ends []int64
	seq, last := l.seq, l.last
	written := batch[:0:0]
	for _, w := range batch {
		w.entry.Seq, w.entry.Time, w.entry.Prev = seq+1, l.now().UTC(), last
		hash, line, err := encode(w.entry)
		if err == nil && len(line) > maxLine {
			err = fmt.Errorf("writing audit log: entry has %d bytes, at most %d are taken", len(line), maxLine)
		}
		if err != nil {
			w.done <- err
			continue
		}
		w.entry.Hash = hash
		seq, last = w.entry.Seq, hash
		lines = append(lines, line...)
		passed, ends, written = append(passed, w.entry), append(ends, l.size+int64(len(lines))), append(written, w)
	}
	l.mu.Unlock()
	err := l.write(lines)
	l.mu.Lock()
	if err != nil {
		err = fmt.Errorf("writing audit log: %w", err)
	} else {
		for i, e := range passed {
			l.passed(e, ends[i])
		}
	}
	for _, w := range written {
		w.done <- err
	}
}

// clean bounds the text of an entry and makes it valid UTF-8: text that JSON would change on the way breaks the hash.
func clean(e *Entry) {
	for _, s := range []*string{&e.Event, &e.Decision, &e.RequestID, &e.Remote, &e.Session, &e.TEE, &e.Attestation,
		&e.Subject, &e.Policy, &e.Status, &e.Reason} {
		most := maxField
		if s == &e.Reason {
			most = maxReason
		}
		if len(*s) > most {
			*s = (*s)[:most] + "..."
		}
		*s = strings.ToValidUTF8(*s, "?")
	}
}

// write appends and syncs; only the one who has set writing calls it. After a failed write it takes the half line back, or gives up on the file for good.
func (l *Log) write(line []byte) error {
	_, err := l.file.Write(line)
	if err == nil {
		err = l.file.Sync()
	}
	if err == nil {
		return nil
	}
	_, seekErr := l.file.Seek(l.size, io.SeekStart)
	if undo := errors.Join(l.file.Truncate(l.size), seekErr); undo != nil {
		l.mu.Lock()
		l.broken = errors.Join(err, undo)
		l.mu.Unlock()
	}
	return err
}

// Head returns the number and hash of the last entry.
func (l *Log) Head() (uint64, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq, l.last
}

// Holds checks that an entry seen earlier is still there. A log that was deleted or cut off since then is not.
func (l *Log) Holds(ctx context.Context, seq uint64, hash string) error {
	if seq == 0 {
		return nil
	}
	found, err := l.Since(ctx, seq-1, 1)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		n, _ := l.Head()
		return fmt.Errorf("audit log %s ends with entry %d, entry %d was there: it has been deleted or cut off", l.path, n, seq)
	}
	if found[0].Hash != hash {
		return fmt.Errorf("entry %d of audit log %s has hash %.16s, it was %.16s: the log is another one", seq, l.path, found[0].Hash, hash)
	}
	return nil
}

// Since returns up to max entries whose number is greater than seq, oldest first.
func (l *Log) Since(ctx context.Context, seq uint64, max int) ([]Entry, error) {
	l.mu.Lock()
	size, from := l.size, l.marks[0]
	for _, m := range l.marks {
		if m.seq <= seq {
			from = m
		}
	}
	l.mu.Unlock()
	f, err := os.Open(l.path)
	if err != nil {
		return nil, fmt.Errorf("reading audit log: %w", err)
	}
	defer f.Close()
	entries := []Entry{}
	errFull := errors.New("full")
	_, err = verify(io.NewSectionReader(f, from.offset, size-from.offset), from, func(e Entry, _ int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.Seq > seq {
			entries = append(entries, e)
		}
		if len(entries) == max {
			return errFull
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFull) {
		return nil, fmt.Errorf("reading audit log: %w", err)
	}
	return entries, nil
}

// Verify checks the chain of an audit log and returns how many entries it has and the last hash.
func Verify(r io.Reader) (uint64, string, error) {
	n, last := uint64(0), genesis
	_, err := verify(r, mark{prev: genesis}, func(e Entry, _ int64) error { n, last = e.Seq, e.Hash; return nil })
	return n, last, err
}

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
			return good, fmt.Errorf("line %d has no end: %w", seq+1, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return good, fmt.Errorf("reading line %d: %w", seq+1, err)
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return good, fmt.Errorf("line %d: %w", seq+1, err)
		}
		if e.Seq != seq+1 {
			return good, fmt.Errorf("line %d has number %d: a line is missing, repeated or moved", seq+1, e.Seq)
		}
		if e.Prev != prev {
			return good, fmt.Errorf("line %d does not follow the line before it: prev is %.16s, want %.16s", e.Seq, e.Prev, prev)
		}
		hash, want, err := encode(e)
		if err != nil {
			return good, err
		}
		if e.Hash != hash || !bytes.Equal(line, want) {
			return good, fmt.Errorf("line %d was changed: its hash is %.16s, its content gives %.16s", e.Seq, e.Hash, hash)
		}
		good += int64(len(line))
		if err := fn(e, good); err != nil {
			return good, err
		}
		seq, prev = e.Seq, e.Hash
	}
}

// encode returns the hash of an entry (over its JSON without the hash) and its line.
func encode(e Entry) (string, []byte, error) {
	e.Hash = ""
	body, err := json.Marshal(e)
	if err != nil {
		return "", nil, fmt.Errorf("encoding audit entry: %w", err)
	}
	sum := sha256.Sum256(body)
	e.Hash = hex.EncodeToString(sum[:])
	line, err := json.Marshal(e)
	if err != nil {
		return "", nil, fmt.Errorf("encoding audit entry: %w", err)
	}
	return e.Hash, append(line, '\n'), nil
}
