package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also a logging program.
func TestMain(m *testing.M) {
	if os.Getenv("CONTAINER_ID") != "" && len(os.Args) > 2 && os.Args[1] == "log" {
		os.Exit(logProgram(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// logProgram writes what it reads to files in a directory; with "mute" it is never ready, with "crash" it ends at once.
func logProgram(args []string) int {
	ready := os.NewFile(5, "ready")
	switch {
	case strings.Contains(args[0], "mute"):
		io.Copy(io.Discard, os.NewFile(3, "stdout"))
		return 0
	case strings.Contains(args[0], "crash"):
		fmt.Fprintln(os.Stderr, "no disk")
		return 1
	}
	ready.Write([]byte{0})
	ready.Close()
	out, _ := io.ReadAll(os.NewFile(3, "stdout"))
	errs, _ := io.ReadAll(os.NewFile(4, "stderr"))
	text := fmt.Sprintf("%s %s out=%s err=%s env=%d", os.Getenv("CONTAINER_ID"), os.Getenv("CONTAINER_NAMESPACE"), out, errs, len(os.Environ()))
	tmp := filepath.Join(args[0], "tmp")
	os.WriteFile(tmp, []byte(text), 0o600)
	os.Rename(tmp, filepath.Join(args[0], "log"))
	return 0
}

// fake is a process in the guest.
type fake struct {
	out, err   chan []byte
	mu         sync.Mutex
	in         bytes.Buffer
	closed     chan struct{}
	closedOnce sync.Once
	reads      atomic.Int64
}

func newFake() *fake {
	return &fake{out: make(chan []byte), err: make(chan []byte), closed: make(chan struct{})}
}

func (f *fake) read(ctx context.Context, from chan []byte) ([]byte, error) {
	select {
	case p, ok := <-from:
		f.reads.Add(1)
		if !ok {
			return nil, io.EOF
		}
		return p, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
func (f *fake) ReadStdout(ctx context.Context, _ int) ([]byte, error) { return f.read(ctx, f.out) }
func (f *fake) ReadStderr(ctx context.Context, _ int) ([]byte, error) { return f.read(ctx, f.err) }
func (f *fake) WriteStdin(_ context.Context, p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(len(p), 3) // a pipe that takes little at once
	f.in.Write(p[:n])
	return n, nil
}
func (f *fake) CloseStdin(context.Context) error {
	f.closedOnce.Do(func() { close(f.closed) })
	return nil
}

func fifo(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, c Config) *Streams {
	t.Helper()
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func reader(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	f.SetDeadline(time.Now().Add(time.Minute))
	return f
}

func copying(t *testing.T, s *Streams, f *fake) chan error {
	done := make(chan error, 1)
	go func() { done <- s.Copy(t.Context(), f) }()
	return done
}

func want(t *testing.T, r io.Reader, text string) {
	t.Helper()
	b := make([]byte, len(text))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != text {
		t.Fatalf("read %q, %v; want %q", b, err, text)
	}
}

func ended(t *testing.T, done chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		t.Fatal("Copy goes on")
		return nil
	}
}

func TestFifos(t *testing.T) {
	c := Config{Stdin: fifo(t, "in"), Stdout: fifo(t, "out"), Stderr: fifo(t, "err")}
	s, f := open(t, c), newFake() // nobody has the other ends open yet
	done := copying(t, s, f)
	out, errs := reader(t, c.Stdout), reader(t, c.Stderr)
	f.out <- []byte("hello")
	want(t, out, "hello")
	f.err <- []byte("oops")
	want(t, errs, "oops")

	in, err := os.OpenFile(c.Stdin, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "input of one")
	in.Close() // containerd restarts: not the end of input
	if in, err = os.OpenFile(c.Stdin, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, " and another")
	s.CloseStdin()
	select {
	case <-f.closed:
		t.Fatal("stdin ended while a writer has it open")
	case <-time.After(20 * time.Millisecond):
	}
	in.Close()
	<-f.closed
	if f.in.String() != "input of one and another" {
		t.Errorf("stdin was %q", f.in.String())
	}

	close(f.out) // stdout ends alone
	if b, err := io.ReadAll(out); err != nil || len(b) > 0 {
		t.Errorf("%q %v", b, err)
	}
	close(f.err)
	if err := ended(t, done); err != nil {
		t.Error(err)
	}
}

// TestReaderComesBack is a restart of containerd: what was written in between is there, and nothing failed.
func TestReaderComesBack(t *testing.T) {
	c := Config{Stdout: fifo(t, "out")}
	s, f := open(t, c), newFake()
	done := copying(t, s, f)
	first := reader(t, c.Stdout)
	f.out <- []byte("one")
	want(t, first, "one")
	first.Close()
	f.out <- []byte("two")
	f.out <- []byte("three")
	second := reader(t, c.Stdout)
	want(t, second, "twothree")
	close(f.out)
	close(f.err)
	if err := ended(t, done); err != nil {
		t.Error(err)
	}
	<-f.closed // no stdin: the process is told at once
}

// TestReaderComesLate: the process is over before the client has opened its end, without waiting for us, as containerd's library does.
func TestReaderComesLate(t *testing.T) {
	for _, text := range []string{"", "short"} {
		c := Config{Stdout: fifo(t, "out")}
		s, f := open(t, c), newFake()
		s.stdout.(*fifoOut).patience = time.Hour // late is not too late on a busy machine either
		done := copying(t, s, f)
		if text != "" {
			f.out <- []byte(text)
		}
		close(f.err)
		close(f.out)
		select {
		case <-done:
			t.Fatal("the end did not wait for a reader")
		case <-time.After(50 * time.Millisecond):
		}
		r, err := os.Open(c.Stdout) // blocks without a writer
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if b, err := io.ReadAll(r); err != nil || string(b) != text {
			t.Errorf("%q %v", b, err)
		}
		if err := ended(t, done); err != nil {
			t.Error(err)
		}
	}
}

func TestReaderNeverComes(t *testing.T) {
	for exited, patience := range map[bool]time.Duration{false: 10 * time.Millisecond, true: time.Hour} { // whichever comes first
		s, f := open(t, Config{Stdout: fifo(t, "out")}), newFake()
		s.stdout.(*fifoOut).patience = patience
		done := copying(t, s, f)
		close(f.err)
		close(f.out)
		<-s.Read()
		if exited {
			s.Exited(10 * time.Millisecond)
		}
		if err := ended(t, done); err != nil {
			t.Errorf("exited %v: %v", exited, err)
		}
	}
}

// TestNobodyReads: a full fifo stops the process, and Exited ends the wait.
func TestNobodyReads(t *testing.T) {
	s, f := open(t, Config{Stdout: fifo(t, "out")}), newFake()
	done := copying(t, s, f)
	big := make([]byte, chunk)
	conn, err := s.stdout.(*fifoOut).f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	holds := 0
	if outer := conn.Control(func(fd uintptr) { holds, err = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) }); outer != nil || err != nil {
		t.Fatal(outer, err)
	}
	sent := 0
	for sent < holds/chunk+2 { // what fits, what waits to be written, and one that is read ahead
		select {
		case f.out <- big:
			sent++
		case err := <-done:
			t.Fatalf("the end after %d chunks: %v", sent, err)
		}
	}
	for range 3 {
		select {
		case f.out <- big:
			if sent++; sent > holds/chunk+3 {
				t.Fatalf("%d chunks were taken", sent)
			}
		case <-time.After(50 * time.Millisecond):
		}
	}
	s.Exited(10 * time.Millisecond)
	if err := ended(t, done); err == nil || !strings.Contains(err.Error(), "writing stdout") {
		t.Errorf("got %v, want what was lost", err)
	}
}

func TestExitedBeforeCopy(t *testing.T) {
	s, f := open(t, Config{}), newFake()
	s.Exited(0)
	if err := ended(t, copying(t, s, f)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "new", "log")
	s, f := open(t, Config{Stdout: "file://" + log, Stderr: "file://" + log}), newFake()
	done := copying(t, s, f)
	f.out <- []byte("a")
	close(f.out)
	f.err <- []byte("b")
	close(f.err)
	if err := ended(t, done); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(log); err != nil || len(b) != 2 {
		t.Errorf("%q %v", b, err)
	}
	for _, bad := range []string{"ttrpc+unix:///run/x?streaming_id=1", "relative", filepath.Join(dir, "none"), "file://host"} {
		if s, err := Open(t.Context(), Config{Stdout: bad}); err == nil {
			s.Close()
			t.Errorf("%q was opened", bad)
		}
	}
}

func TestTerminalHasNoStderr(t *testing.T) {
	s, f := open(t, Config{Terminal: true, Stdout: fifo(t, "out"), Stderr: "/none"}), newFake()
	done := copying(t, s, f)
	close(f.out)
	if err := ended(t, done); err != nil {
		t.Error(err)
	}
}

func TestLoggingProgram(t *testing.T) {
	dir := t.TempDir()
	for _, scheme := range []string{"binary", "binary-v2"} {
		s, f := open(t, Config{Stdout: scheme + "://" + os.Args[0] + "?log=" + dir, Stderr: "x", ContainerID: "id", Namespace: "ns"}), newFake()
		done := copying(t, s, f)
		f.out <- []byte("o")
		f.err <- []byte("e")
		close(f.out)
		close(f.err)
		if err := ended(t, done); err != nil {
			t.Fatal(err)
		}
		<-s.logger.ended
		b, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil || string(b) != "id ns out=o err=e env=2" {
			t.Errorf("%s: %q %v", scheme, b, err)
		}
	}
	for what, text := range map[string]string{"mute": "not ready", "crash": "no disk"} {
		where := "binary-v2://" + os.Args[0] + "?log=" + what
		if _, err := Open(t.Context(), Config{Stdout: where, ContainerID: "id", ReadyTime: 200 * time.Millisecond}); err == nil ||
			!strings.Contains(err.Error(), text) && !strings.Contains(err.Error(), "before it was ready") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestParseBinary(t *testing.T) {
	p, args, v2, err := parseBinary("binary:///usr/bin/logger?b=1&a&c=x%20y")
	if err != nil || v2 || p != "/usr/bin/logger" || fmt.Sprintf("%q", args) != `["b" "1" "a" "" "c" "x y"]` {
		t.Errorf("%s %q %v", p, args, err)
	}
}

func FuzzParseBinary(f *testing.F) {
	f.Add("binary:///usr/bin/logger?b=1&a&c=x%20y")
	f.Fuzz(func(t *testing.T, s string) {
		p, args, _, err := parseBinary(s)
		if err == nil && (!filepath.IsAbs(p) || strings.Contains(strings.Join(args, ""), "\x00")) {
			t.Errorf("%q: %q %q", s, p, args)
		}
	})
}

// endless is a process that writes without end, n bytes of it.
type endless struct {
	*fake
	left atomic.Int64
	data []byte
}

func (e *endless) ReadStdout(_ context.Context, max int) ([]byte, error) {
	if e.left.Add(-int64(max)) < 0 {
		return nil, io.EOF
	}
	return e.data[:max], nil
}

// BenchmarkFifo is the way from the source to who reads the fifo.
func BenchmarkFifo(b *testing.B) {
	path := fifo(b, "out")
	s := open(b, Config{Stdout: path})
	f := &endless{fake: newFake(), data: make([]byte, chunk)}
	close(f.err)
	f.left.Store(int64(b.N) * chunk)
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	b.SetBytes(chunk)
	b.ResetTimer()
	done := make(chan error, 1)
	go func() { done <- s.Copy(b.Context(), f) }()
	buf := make([]byte, 128<<10)
	for {
		if _, err := r.Read(buf); err != nil {
			break
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// TestRead: the end of reading does not wait for who takes the output, and needs the end of both streams.
func TestRead(t *testing.T) {
	s, f := open(t, Config{Stdout: fifo(t, "out")}), newFake()
	done := copying(t, s, f)
	close(f.err)
	f.out <- []byte("late")
	select {
	case <-s.Read():
		t.Error("stdout has not ended")
	default:
	}
	close(f.out)
	select {
	case <-s.Read():
	case <-time.After(time.Minute):
		t.Error("both streams have ended, and Read does not say so")
	}
	s.Exited(time.Millisecond)
	_ = ended(t, done)
}
