package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The entry that says that a file is about to be removed: its subject names the entries in it, its status is the number and hash of
// the last of them.
const (
	EventRemoved  = "audit-remove"
	removedStatus = "%d:%s"
)

// next puts the full current file under its own name and begins a new one. It holds the lock, and writing is set.
//
// A crash after the rename leaves no current file, and Open begins one; a crash later leaves an empty one. When a new file cannot be
// made, entries go on into the full one, which has its last name by then or still the current one; the next batch tries again.
func (l *Log) next() error {
	name := fullName(l.path, l.first)
	if len(l.full) == 0 || l.full[len(l.full)-1].path != name {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("beginning a new audit file: %s is there already: %w", name, errors.Join(fs.ErrExist, err))
		}
		if err := os.Rename(l.path, name); err != nil {
			return fmt.Errorf("beginning a new audit file: %w", err)
		}
		l.full = append(l.full[:len(l.full):len(l.full)], part{name, l.first})
	}
	l.marks[name] = append(l.marks[name], l.marks[l.path]...)
	delete(l.marks, l.path)
	f, err := openLocked(l.path, os.O_CREATE|os.O_EXCL)
	if err != nil {
		return fmt.Errorf("beginning a new audit file: %w", err)
	}
	if err := syncDir(filepath.Dir(l.path)); err != nil {
		return errors.Join(fmt.Errorf("beginning a new audit file: %w", err), f.Close(), os.Remove(l.path))
	}
	old := l.file
	l.file, l.size, l.first = f, 0, 0
	if err := old.Close(); err != nil {
		return fmt.Errorf("closing a full audit file: %w", err)
	}
	return l.forget()
}

// forget removes the oldest full files beyond those that are kept, each after an entry that says so is on disk.
func (l *Log) forget() error {
	for l.KeepFiles > 0 && len(l.full) > l.KeepFiles {
		gone := l.full[0]
		end, err := lastLine(gone.path)
		if err == nil && end == nil {
			err = errors.New("it is empty")
		}
		if err != nil {
			return fmt.Errorf("removing audit file %s: %w", gone.path, err)
		}
		w := &waiting{done: make(chan error, 1), entry: Entry{
			Event: EventRemoved, Decision: Allow, Status: fmt.Sprintf(removedStatus, end.Seq, end.Hash),
			Subject: fmt.Sprintf("entries %d to %d", gone.first, end.Seq), Reason: fmt.Sprintf("keep_files is %d", l.KeepFiles),
		}}
		l.flush([]*waiting{w})
		if err := <-w.done; err != nil {
			return fmt.Errorf("removing audit file %s: %w", gone.path, err)
		}
		if err := os.Remove(gone.path); err != nil {
			return fmt.Errorf("removing audit file %s: %w", gone.path, err)
		}
		l.full = l.full[1:]
		delete(l.marks, gone.path)
	}
	return nil
}
