// Package template keeps templates of virtual machines (see package qemu) on the node, for all its shims.
//
// Each is a directory, named by the key of what it fits, that is made under another name and renamed when it is whole. Their number and
// what they take of the file system are bounded. Everything may be removed at any time: who uses a template has its files open. What
// could not be made, or not be used, is marked and left alone for an hour, so that no pod pays for it again and again.
package template

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Root is where the templates of a node are: in memory, and gone after a restart of the host.
const Root = "/run/cloister/templates"

const (
	// most is how many templates are kept; a node has as many as there are different shapes of sandboxes.
	most = 3
	// share is the part of the free space that a new one may take.
	share = 4
	// idle is how long one has to be unused before another takes its place: pods of many shapes would else make them in turns.
	idle = 10 * time.Minute
	// again is how long one that failed is left alone.
	again = time.Hour

	lockName   = "lock"
	newPrefix  = "new-"
	failSuffix = ".failed"
)

// Store is a directory of templates.
type Store struct{ root string }

// New returns the store below root; empty is Root.
func New(root string) *Store {
	if root == "" {
		root = Root
	}
	return &Store{root}
}

var (
	// ErrBusy means that somebody else makes a template on this node.
	ErrBusy = errors.New("another template is being made")
	// ErrFull means that there are as many templates as there may be, and that all are in use.
	ErrFull = errors.New("there is no room for another template")
	// ErrFailed means that this template could not be made or used a short while ago.
	ErrFailed = errors.New("this template failed a short while ago")

	key = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

// check refuses a directory that others could have written to.
func (s *Store) check() error {
	var st unix.Stat_t
	if err := unix.Lstat(s.root, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: s.root, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a directory that belongs to us alone", s.root)
	}
	return nil
}

// Find returns the directory of a template, or "" when there is none to use.
func (s *Store) Find(name string) string {
	if !key.MatchString(name) || s.check() != nil || s.failed(name) {
		return ""
	}
	dir := filepath.Join(s.root, name)
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return ""
	}
	now := time.Now()
	_ = os.Chtimes(dir, now, now) // those that are used last are kept
	return dir
}

// Failed removes a template that could not be used, and notes why.
func (s *Store) Failed(name string, why error) error {
	if !key.MatchString(name) {
		return fmt.Errorf("template %.40q: this is no key", name)
	}
	text := why.Error()
	return errors.Join(
		os.WriteFile(filepath.Join(s.root, name+failSuffix), []byte(text[:min(len(text), 4096)]+"\n"), 0o600),
		os.RemoveAll(filepath.Join(s.root, name)))
}

func (s *Store) failed(name string) bool {
	info, err := os.Lstat(filepath.Join(s.root, name+failSuffix))
	return err == nil && time.Since(info.ModTime()).Abs() < again
}

// Make makes a template unless it is there. save writes it into a directory that is there and empty; limit is the most bytes that it may
// take. What save leaves when it fails is removed, and so is what others left who were killed. An error of save is noted, so that it is
// not tried again soon, unless ctx has ended.
func (s *Store) Make(ctx context.Context, name string, save func(ctx context.Context, dir string, limit int64) error) (err error) {
	if !key.MatchString(name) {
		return fmt.Errorf("template %.40q: this is no key", name)
	}
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return fmt.Errorf("making the directory of templates: %w", err)
	}
	if err := s.check(); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(s.root, lockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("locking the templates: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrBusy
		}
		return fmt.Errorf("locking the templates: %w", err)
	}
	dir := filepath.Join(s.root, name)
	if s.failed(name) {
		return ErrFailed
	}
	if _, err := os.Lstat(dir); err == nil {
		return nil
	}
	if err := s.tidy(); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.root, &st); err != nil {
		return fmt.Errorf("looking for space: %w", err)
	}
	fresh := filepath.Join(s.root, newPrefix+name)
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return fmt.Errorf("making a template: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(fresh))
		}
	}()
	if err := save(ctx, fresh, int64(st.Bavail)*st.Bsize/share); err != nil {
		if ctx.Err() == nil {
			err = errors.Join(err, s.Failed(name, err))
		}
		return err
	}
	return os.Rename(fresh, dir)
}

// tidy removes what was left unfinished, old marks, and the templates that were not used for longest, so that there is room for one more.
// ErrFull: there is none. The lock is held.
func (s *Store) tidy() error {
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return fmt.Errorf("tidying the templates: %w", err)
	}
	var errs []error
	var whole []fs.FileInfo
	for _, e := range entries {
		info, err := e.Info()
		switch name := e.Name(); {
		case err != nil || name == lockName:
		case e.IsDir() && key.MatchString(name):
			whole = append(whole, info)
		case strings.HasSuffix(name, failSuffix) && s.failed(strings.TrimSuffix(name, failSuffix)):
		default:
			errs = append(errs, os.RemoveAll(filepath.Join(s.root, name)))
		}
	}
	slices.SortFunc(whole, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for _, info := range whole[min(len(whole), most-1):] {
		if time.Since(info.ModTime()).Abs() < idle {
			return ErrFull
		}
		errs = append(errs, os.RemoveAll(filepath.Join(s.root, info.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("tidying the templates: %w", err)
	}
	return nil
}
