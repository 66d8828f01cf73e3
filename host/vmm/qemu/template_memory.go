package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/process"
)

const (
	memoryPage  = 4096
	memoryChunk = 1 << 20
)

// CopyMemoryCommand is the first argument of a program that calls CopyMemory; see vmm.Config.MemoryCopier.
const CopyMemoryCommand = "copy-guest-memory"

// copyPages copies what is not zero from one sparse file to another that is all holes, and sums it up: the places and contents of the pages.
func copyPages(ctx context.Context, to, from *os.File) (uint32, error) {
	info, err := from.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	var zeros [memoryPage]byte
	var sum uint32
	buf := make([]byte, memoryChunk)
	fd := int(from.Fd())
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		begin, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // nothing but holes
		}
		if err != nil {
			return 0, fmt.Errorf("looking for data: %w", err)
		}
		end, err := unix.Seek(fd, begin, unix.SEEK_HOLE)
		if err != nil {
			return 0, fmt.Errorf("looking for data: %w", err)
		}
		// Another file system may have larger blocks; the sum is of whole pages.
		begin -= begin % memoryPage
		at = end
		for begin < end {
			n := min(memoryChunk, size-begin)
			if _, err := from.ReadAt(buf[:n], begin); err != nil && !(errors.Is(err, io.EOF) && begin+n == size) {
				return 0, err
			}
			run := -1 // where pages to write begin
			flush := func(end int) error {
				if run < 0 {
					return nil
				}
				_, err := to.WriteAt(buf[run:end], begin+int64(run))
				run = -1
				return err
			}
			i := 0
			for ; i < int(n) && begin+int64(i) < end; i += memoryPage {
				page := buf[i : i+memoryPage]
				if bytes.Equal(page, zeros[:]) {
					if err := flush(i); err != nil {
						return 0, err
					}
					continue
				}
				if run < 0 {
					run = i
				}
				var place [8]byte
				binary.LittleEndian.PutUint64(place[:], uint64(begin)+uint64(i))
				sum = crc32.Update(crc32.Update(sum, castagnoli, place[:]), castagnoli, page)
			}
			if err := flush(i); err != nil {
				return 0, err
			}
			begin += int64(i)
			at = max(at, begin)
		}
	}
	return sum, nil
}

// saveMemory writes the memory of a VM that is stopped.
func saveMemory(memory *os.File, name string, limit int64) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(memory.Fd()), &st); err != nil {
		return 0, err
	}
	if used := st.Blocks * 512; used > limit {
		return 0, fmt.Errorf("the guest uses %d MiB of memory; there is room for %d", used>>20, limit>>20)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := f.Truncate(st.Size); err != nil {
		return 0, err
	}
	sum, err := copyPages(context.Background(), f, memory)
	if err != nil {
		return 0, fmt.Errorf("writing the memory: %w", err)
	}
	return sum, f.Close()
}

// memoryCopy is the filling of a VM's memory from a template, in a process of its own that belongs to the VM: who writes a page first is
// charged for it, and that shall be the VM's control group.
type memoryCopy struct {
	child *process.Child // nil when this process copies
	done  chan error
	stop  context.CancelFunc
}

// copyTemplate begins to fill memory. started is called before the first page is written.
func copyTemplate(t *template, memory *os.File, copier []string, started func(pid int) error) (*memoryCopy, error) {
	m := &memoryCopy{done: make(chan error, 1), stop: func() {}}
	if len(copier) == 0 {
		var ctx context.Context
		ctx, m.stop = context.WithCancel(context.Background())
		from, err := reopen(t.memory, os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		to, err := reopen(memory, os.O_RDWR)
		if err != nil {
			from.Close()
			return nil, err
		}
		go func() {
			defer from.Close()
			defer to.Close()
			m.done <- fillMemory(ctx, to, from, t.facts.MemorySum)
		}()
		return m, nil
	}
	gate, open, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer open.Close()
	args := append(append([]string{}, copier[1:]...), strconv.FormatUint(uint64(t.facts.MemorySum), 10))
	m.child, err = process.Start(copier[0], args, process.Environment("/"), t.memory, memory, gate)
	gate.Close()
	if err != nil {
		return nil, err
	}
	if started != nil {
		if err := started(m.child.PID()); err != nil {
			m.child.Kill()
			return nil, fmt.Errorf("taking over process %d: %w", m.child.PID(), err)
		}
	}
	go func() {
		<-m.child.Done()
		err := m.child.Err()
		if lines := m.child.Output.Lines(3); err != nil && len(lines) > 0 {
			err = fmt.Errorf("%w: %s", err, lines[len(lines)-1])
		}
		m.done <- err
	}()
	return m, nil // closing open lets it begin
}

// reopen opens a file anew, so that its place and its life are its own.
func reopen(f *os.File, flag int) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flag, 0)
}

// wait waits for the end of the copying.
func (m *memoryCopy) wait(ctx context.Context) error {
	select {
	case err := <-m.done:
		m.done <- err
		if err == nil {
			return nil
		}
		err = fmt.Errorf("copying the template's memory: %w", err)
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && !exit.Exited() {
			return err // it was killed, for want of memory or with the pod
		}
		return &TemplateError{err}
	case <-ctx.Done():
		return fmt.Errorf("copying the template's memory: %w", ctx.Err())
	}
}

// end ends the copying, and returns when nothing of it runs.
func (m *memoryCopy) end() {
	m.stop()
	if m.child != nil {
		m.child.Kill()
	}
	<-m.done
}

func fillMemory(ctx context.Context, to, from *os.File, want uint32) error {
	sum, err := copyPages(ctx, to, from)
	if err == nil && sum != want {
		err = errors.New("it is damaged: its sum is another")
	}
	return err
}

// CopyMemory is the program that fills the memory of a VM from a template: it waits until its file 5 ends, copies file 3 to file 4, and
// compares the sum with its only argument. It returns the program's exit status.
func CopyMemory(args []string) int {
	err := func() error {
		if len(args) != 1 {
			return errors.New("want one argument, the sum of the memory")
		}
		want, err := strconv.ParseUint(args[0], 10, 32)
		if err != nil {
			return err
		}
		from, to, gate := os.NewFile(3, "template"), os.NewFile(4, "memory"), os.NewFile(5, "gate")
		if _, err := io.Copy(io.Discard, gate); err != nil {
			return fmt.Errorf("waiting for the begin: %w", err)
		}
		return fillMemory(context.Background(), to, from, uint32(want))
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
