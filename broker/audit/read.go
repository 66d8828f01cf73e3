package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// errFull ends a walk that has what it wants.
var errFull = errors.New("full")

// Since returns up to max entries whose number is greater than seq, oldest first. Entries in files that have been removed are left
// out.
func (l *Log) Since(ctx context.Context, seq uint64, max int) ([]Entry, error) {
	entries := []Entry{}
	for len(entries) < max {
		before := seq
		err := l.walk(ctx, seq, func(e Entry) error {
			entries, seq = append(entries, e), e.Seq
			if len(entries) == max {
				return errFull
			}
			return nil
		})
		if err != nil && !errors.Is(err, errFull) {
			return nil, fmt.Errorf("reading audit log: %w", err)
		}
		if seq == before {
			break
		}
	}
	return entries, nil
}

// walk calls fn with the entries after seq that are in the same file as the first of them.
func (l *Log) walk(ctx context.Context, seq uint64, fn func(Entry) error) error {
	f, from, size, err := l.open(seq)
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	name := f.Name()
	_, err = verify(io.NewSectionReader(f, from.offset, size-from.offset), from, func(e Entry, end int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if e.Seq%markEvery == 0 {
			l.remember(name, mark{offset: end, seq: e.Seq, prev: e.Hash})
		}
		if e.Seq > seq {
			return fn(e)
		}
		return nil
	})
	return err
}

// open opens the file that holds the entry after seq, or the oldest one after that, and says where to begin and end. It returns nil
// when there is none.
func (l *Log) open(seq uint64) (*os.File, mark, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	parts := l.full
	if l.first > 0 && (len(parts) == 0 || parts[len(parts)-1].first != l.first) {
		parts = append(parts[:len(parts):len(parts)], part{l.path, l.first})
	}
	if seq >= l.seq || len(parts) == 0 {
		return nil, mark{}, 0, nil
	}
	in := 0
	for i, p := range parts {
		if p.first <= seq+1 {
			in = i
		}
	}
	p := parts[in]
	f, err := os.Open(p.path)
	if err != nil {
		return nil, mark{}, 0, err
	}
	size := l.size
	if p.first != l.first { // a full file; the current one may be longer than what is acknowledged
		if size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, mark{}, 0, errors.Join(err, f.Close())
		}
	}
	from, err := firstMark(p.path)
	if err != nil {
		return nil, mark{}, 0, errors.Join(err, f.Close())
	}
	for _, m := range l.marks[p.path] {
		if m.seq <= seq && m.seq > from.seq {
			from = m
		}
	}
	return f, from, size, nil
}

// remember keeps a place of a file. Marks are in order, and each is kept once; a file that was renamed or removed since gets none.
func (l *Log) remember(path string, m mark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.marks[path]
	if path == l.path || len(known) > 0 && known[len(known)-1].seq >= m.seq {
		return
	}
	for _, p := range l.full {
		if p.path == path {
			l.marks[path] = append(known, m)
			return
		}
	}
}

// Holds checks that an entry seen earlier is still there, or in a file whose removal is recorded. A log that was deleted or cut off
// since then has neither.
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
	if found[0].Seq != seq {
		return l.removed(ctx, found[0])
	}
	if found[0].Hash != hash {
		return fmt.Errorf("entry %d of audit log %s has hash %.16s, it was %.16s: the log is another one", seq, l.path, found[0].Hash, hash)
	}
	return nil
}

// removed checks that an entry records the removal of what was before the first one.
func (l *Log) removed(ctx context.Context, first Entry) error {
	want := fmt.Sprintf(removedStatus, first.Seq-1, first.Prev)
	for seq := first.Seq - 1; ; {
		page, err := l.Since(ctx, seq, markEvery)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return fmt.Errorf("audit log %s begins with entry %d, and no entry records that those before it were removed", l.path, first.Seq)
		}
		for _, e := range page {
			if e.Event == EventRemoved && e.Status == want {
				return nil
			}
		}
		seq = page[len(page)-1].Seq
	}
}
