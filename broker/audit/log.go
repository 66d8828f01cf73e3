package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Log is an open audit log.
type Log struct {
	path string // of the current file
	Options

	mu     sync.Mutex
	file   *os.File
	size   int64
	seq    uint64
	last   string
	first  uint64 // of the current file; 0 while it is empty
	full   []part // the full files, oldest first
	marks  map[string][]mark
	broken error
	rotate error // why the latest attempt to begin a new file failed

	queue     []*waiting
	writing   bool       // somebody is at the file
	lingering bool       // a timer will begin to write
	idle      *sync.Cond // told when writing ends
}

// mark is a place in a file where reading can begin: what was verified up to there.
type mark struct {
	offset int64
	seq    uint64
	prev   string
}

// markEvery is how many entries apart marks are.
const markEvery = 1024

// Open opens the current file, making it if needed, checks its whole chain, and that the full files lead to it without a gap; what
// is inside those is left to Verify. A half-written last line, which a crash can leave, is cut off: its decision was never acted on.
// Any other damage is an error, and so is a second process that writes the same log.
func Open(path string, o Options) (*Log, error) {
	if o.Replica != "" && !replicaNames().MatchString(o.Replica) {
		return nil, fmt.Errorf("opening audit log: replica is named %.64q, want up to 63 letters, digits, '-' and '_'", o.Replica)
	}
	l := &Log{path: path, Options: o, last: Genesis(), marks: map[string][]mark{}}
	l.idle = sync.NewCond(&l.mu)
	var err error
	if l.full, err = fullFiles(path); err != nil {
		return nil, err
	}
	if err := l.before(); err != nil {
		return nil, fmt.Errorf("checking audit log %s: %w", path, err)
	}
	if l.file, err = openLocked(path, os.O_CREATE); err != nil {
		return nil, fmt.Errorf("opening audit log: %w", err)
	}
	if err := l.current(); err != nil {
		return nil, errors.Join(fmt.Errorf("checking audit log %s: %w", path, err), l.file.Close())
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(fmt.Errorf("opening audit log: %w", err), l.file.Close())
	}
	return l, nil
}

// openLocked opens a file for this process alone.
func openLocked(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another process: %w", path, err), f.Close())
	}
	return f, nil
}

// before checks the ends of the full files and takes up where they stop. Only the last of them can have half a line, when the broker
// could not begin the file after it.
func (l *Log) before() error {
	for i, p := range l.full {
		from, err := firstMark(p.path)
		if err != nil {
			return err
		}
		if from.seq+1 != p.first {
			return fmt.Errorf("%s begins with entry %d", filepath.Base(p.path), from.seq+1)
		}
		if i > 0 && (from.seq != l.seq || from.prev != l.last) {
			return fmt.Errorf("%s does not follow the file before it, which ends with entry %d", filepath.Base(p.path), l.seq)
		}
		end, err := lastLine(p.path)
		if errors.Is(err, io.ErrUnexpectedEOF) && i == len(l.full)-1 {
			end, err = repair(p.path, from)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(p.path), err)
		}
		l.seq, l.last = end.Seq, end.Hash
	}
	return nil
}

// repair cuts half a line off a full file and returns its last entry.
func repair(path string, from mark) (*Entry, error) {
	f, err := openLocked(path, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var end *Entry
	good, err := verify(f, from, func(e Entry, _ int64) error { end = &e; return nil })
	if !errors.Is(err, io.ErrUnexpectedEOF) || end == nil {
		return nil, errors.Join(errors.New("nothing of it can be used"), err)
	}
	return end, errors.Join(f.Truncate(good), f.Sync())
}

// current checks the current file and goes to its end.
func (l *Log) current() error {
	from := mark{seq: l.seq, prev: l.last}
	if len(l.full) == 0 {
		// Earlier files may have been removed; whether that is recorded is for Verify to say.
		var err error
		if from, err = firstMark(l.path); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if err != nil {
			from = mark{prev: Genesis()}
		}
		l.seq, l.last = from.seq, from.prev
	}
	good, err := verify(l.file, from, func(e Entry, end int64) error { l.passed(e, end); return nil })
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if err != nil {
		if err := errors.Join(l.file.Truncate(good), l.file.Sync()); err != nil {
			return fmt.Errorf("cutting half a line off: %w", err)
		}
	}
	if _, err := l.file.Seek(good, io.SeekStart); err != nil {
		return err
	}
	l.size = good
	return nil
}

// passed notes an entry that ends at an offset of the current file.
func (l *Log) passed(e Entry, end int64) {
	if l.first == 0 {
		l.first = e.Seq
	}
	l.seq, l.last, l.size = e.Seq, e.Hash, end
	if e.Seq%markEvery == 0 {
		l.marks[l.path] = append(l.marks[l.path], mark{offset: end, seq: e.Seq, prev: e.Hash})
	}
}

// Close closes the file, after what waits is written.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 {
		l.begin()
	}
	for l.writing {
		l.idle.Wait()
	}
	if l.broken == nil {
		l.broken = os.ErrClosed
	}
	return l.file.Close()
}

// Head returns the number and hash of the last entry.
func (l *Log) Head() (uint64, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq, l.last
}

// Files returns how many files there are, and why no new one could be begun when the current one was full.
func (l *Log) Files() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.full) + 1, l.rotate
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
	w, _, err := l.enqueue(ctx, e, 0)
	if err != nil {
		return err
	}
	return <-w.done
}

// What Queue leaves waiting: at most this many entries before it waits for its own, for at most this long. An entry of Append takes
// them along earlier, as it mostly does in a handshake, whose challenge then costs no wait for the disk of its own.
const (
	maxQueued = 1024
	linger    = 100 * time.Millisecond
)

// Queue writes one entry and does not wait for the disk, unless many wait already. It is for what gives nothing away: a crash can lose
// the entry, but not one that Append writes later without it, since entries go to the disk in their order.
func (l *Log) Queue(ctx context.Context, e Entry) error {
	w, before, err := l.enqueue(ctx, e, linger)
	if err != nil || before < maxQueued {
		return err
	}
	return <-w.done
}

// enqueue puts an entry behind those that wait, and tells how many those are. Writing begins at once, or after a time unless many wait.
func (l *Log) enqueue(ctx context.Context, e Entry, after time.Duration) (*waiting, int, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, fmt.Errorf("writing audit log: %w", err)
	}
	clean(&e)
	w := &waiting{entry: e, done: make(chan error, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return nil, 0, fmt.Errorf("writing audit log: an earlier write failed: %w", l.broken)
	}
	before := len(l.queue)
	l.queue = append(l.queue, w)
	switch {
	case after == 0 || before >= maxQueued:
		l.begin()
	case !l.writing && !l.lingering:
		l.lingering = true
		time.AfterFunc(after, l.lingered)
	}
	return w, before, nil
}

// begin lets what waits be written. It is called with the lock.
func (l *Log) begin() {
	if !l.writing {
		l.writing = true
		go l.flushAll()
	}
}

// lingered begins to write what nobody has taken along.
func (l *Log) lingered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lingering = false
	if len(l.queue) > 0 {
		l.begin()
	}
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
		if l.MaxBytes > 0 && l.size >= l.MaxBytes && l.broken == nil {
			l.rotate = l.next()
		}
	}
	l.queue, l.writing = nil, false
	l.idle.Broadcast()
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
		w.entry.Seq, w.entry.Time, w.entry.Prev, w.entry.Replica = seq+1, l.Now().UTC(), last, l.Replica
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
