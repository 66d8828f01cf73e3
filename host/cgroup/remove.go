package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Pauses between tries to remove a directory that is busy. There is no event for a version 1 group that became empty.
const (
	firstPause = 2 * time.Millisecond
	longPause  = 100 * time.Millisecond
)

// pace says how often something is tried.
type pace int

const (
	oneTry   pace = 1
	untilEnd pace = 0
)

// Delete removes the group, which must be empty or about to be: a process that ends is waited for until ctx ends. What is gone already is
// no error.
func (g *Group) Delete(ctx context.Context) error { return g.remove(ctx, untilEnd) }

// Destroy kills every process in the group and removes it. The calling process, when it is inside, is moved out first.
func (g *Group) Destroy(ctx context.Context) error {
	if err := g.leave(); err != nil {
		return fmt.Errorf("leaving cgroup %s: %w", g.state.Location, err)
	}
	return g.retry(ctx, untilEnd, func() error {
		if err := g.kill(); err != nil {
			return err
		}
		return g.removeOnce(ctx)
	})
}

func (g *Group) remove(ctx context.Context, p pace) error {
	return g.retry(ctx, p, func() error { return g.removeOnce(ctx) })
}

// retry repeats what fails because something is busy.
func (g *Group) retry(ctx context.Context, p pace, do func() error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pause, tries := firstPause, pace(1); ; tries++ {
		err := do()
		switch {
		case err == nil:
			return nil
		case !busy(err) || tries == p:
			return fmt.Errorf("removing cgroup %s: %w", g.state.Location, err)
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			pids, _ := g.PIDs()
			return fmt.Errorf("removing cgroup %s, with processes %v: %w (%w)", g.state.Location, pids, err, ctx.Err())
		case <-timer.C:
		}
		pause = min(2*pause, longPause)
	}
}

func busy(err error) bool {
	return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EAGAIN)
}

// removeOnce removes all directories, in every hierarchy, even when one fails.
func (g *Group) removeOnce(ctx context.Context) error {
	if g.systemd && g.Exists() {
		pids, err := g.PIDs()
		if err != nil {
			return err
		}
		if len(pids) > 0 { // stopping the unit would end them
			return unix.EBUSY
		}
		// The unit's end is what counts; directories that it leaves are removed below, and a failure there is reported.
		_ = within(ctx, g.manager.Destroy)
	}
	var errs []error
	for _, dir := range g.dirs() {
		errs = append(errs, removeTree(dir, 0))
	}
	return errors.Join(errs...)
}

// removeTree removes a directory of the cgroup file system with those below it; files go with their directory.
func removeTree(dir string, depth int) error {
	const maxTree = 64
	err := unix.Rmdir(dir)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR): // below a file there is none
		return nil
	case !busy(err):
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	case depth > maxTree:
		return &fs.PathError{Op: "rmdir", Path: dir, Err: unix.ELOOP}
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		return rerr
	}
	below := false
	for _, e := range entries {
		if e.IsDir() {
			below = true
			if err := removeTree(filepath.Join(dir, e.Name()), depth+1); err != nil {
				return err
			}
		}
	}
	if below {
		err = unix.Rmdir(dir)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
}

// kill sends SIGKILL to every process in the group. A process id may belong to another process by the time it is used; so each process
// is held by a descriptor first, and only those that are in the group then are killed.
func (g *Group) kill() error {
	g.thaw()
	held := map[int]int{}
	defer func() {
		for _, fd := range held {
			unix.Close(fd)
		}
	}()
	pids, err := g.PIDs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if pid == os.Getpid() || pid <= 1 {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("holding process %d: %w", pid, err)
		}
		held[pid] = fd
	}
	still, err := g.PIDs()
	if err != nil {
		return err
	}
	for _, pid := range still {
		if fd, ok := held[pid]; ok {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("killing process %d: %w", pid, err)
			}
		}
	}
	return nil
}

// thaw lets frozen processes run, because those of version 1 do not die. It fails when there is nothing to thaw.
func (g *Group) thaw() {
	for _, dir := range g.dirs() {
		_ = writeExisting(filepath.Join(dir, "freezer.state"), "THAWED")
	}
}

// leave moves this process out of the group, to the nearest parent that takes it: a group with a process in it cannot be removed.
func (g *Group) leave() error {
	self := os.Getpid()
	for _, dir := range g.dirs() {
		pids, err := groupPIDs(dir)
		if err != nil || !slices.Contains(pids, self) {
			continue
		}
		for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
			err = writeExisting(filepath.Join(parent, "cgroup.procs"), strconv.Itoa(self))
			if err == nil {
				break
			}
			if errors.Is(err, fs.ErrNotExist) { // above the mount point
				return fmt.Errorf("no parent of %s takes this process", dir)
			}
		}
	}
	return nil
}

func writeExisting(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
