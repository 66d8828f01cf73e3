package cri

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/tools/remotecommand"
)

func execSync(t *testing.T, _ *Pod, main *Container) {
	if got, want := main.Exec("sh", "-c", "echo to stdout; echo to stderr >&2; exit 7"), (ExecResult{"to stdout\n", "to stderr\n", 7}); got != want {
		t.Errorf("got %+v, expected %+v", got, want)
	}
	if got := main.Exec("sh", "-c", "kill -KILL $$"); got.Code != 137 {
		t.Errorf("a command killed by SIGKILL gave %d", got.Code)
	}
	if _, err := main.TryExec(30, "/no/such/program"); err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("a command that is not there: %v", err)
	}
	from := time.Now()
	if _, err := main.TryExec(1, "sleep", "1000"); status.Code(err) != codes.DeadlineExceeded && (err == nil || !strings.Contains(err.Error(), "timeout")) {
		t.Errorf("a probe that takes too long: %v", err)
	}
	if took := time.Since(from); took > time.Minute {
		t.Errorf("a probe with a timeout of 1 s took %s", took)
	}
	main.ExpectSh("ps -o args | grep -c '^sleep 1000$' || true", "1") // main's own; that of the probe is gone
	if got := main.Exec("dd", "if=/dev/zero", "bs=64k", "count=64"); len(got.Stdout) != 4<<20 {
		t.Errorf("of 4 MiB of output there came %d bytes", len(got.Stdout))
	}
	for n := range 3 { // probes
		if got := main.Exec("sh", "-c", fmt.Sprint("exit ", n%2)); got.Code != int32(n%2) {
			t.Errorf("probe %d gave %d", n, got.Code)
		}
	}
}

func streamContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func execStream(t *testing.T, _ *Pod, main *Container) {
	data := make([]byte, 3<<20+17)
	_, _ = rand.Read(data)
	var out, errs bytes.Buffer
	err := main.ExecStream(streamContext(t), StreamOptions{Stdin: bytes.NewReader(data), Stdout: &out, Stderr: &errs}, "sh", "-c", "cat; echo done >&2; exit 9")
	if ExitCode(err) != 9 {
		t.Errorf("the exit code of 9 came as %v", err)
	}
	if !bytes.Equal(out.Bytes(), data) || errs.String() != "done\n" {
		t.Errorf("of %d bytes through stdin and stdout there came %d back; stderr %q", len(data), out.Len(), errs.String())
	}
	if err := main.ExecStream(streamContext(t), StreamOptions{Stdout: &out}, "true"); err != nil {
		t.Errorf("true: %v", err)
	}
	terminal(t, main)
}

// terminal runs a shell on a terminal and types.
func terminal(t *testing.T, main *Container) {
	size := make(chan remotecommand.TerminalSize, 2)
	size <- remotecommand.TerminalSize{Width: 91, Height: 33}
	in, typed := io.Pipe()
	out := newExpect(t)
	ended := make(chan error, 1)
	go func() {
		err := main.ExecStream(streamContext(t), StreamOptions{Stdin: in, Stdout: out, TTY: true, Sizes: size}, "sh")
		in.CloseWithError(fmt.Errorf("the exec ended: %w", errors.Join(err, io.EOF)))
		ended <- err
	}()
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(typed, text); err != nil {
			t.Error(err)
		}
	}
	say("tty; until stty size | grep '33 91'; do :; done\n")
	out.wait("/dev/pts/")
	out.wait("33 91\r\n")
	size <- remotecommand.TerminalSize{Width: 120, Height: 50}
	say("until stty size | grep '50 120'; do :; done\n")
	out.wait("50 120\r\n")
	say("sh -c 'echo be\"\"gun; exec sleep 1000'\n")
	out.wait("begun\r\n")
	say("\x03echo after $((40+2))\n") // control-C
	out.wait("after 42\r\n")
	say("exit 5\n")
	select {
	case err := <-ended:
		if ExitCode(err) != 5 {
			t.Errorf("the shell's exit code of 5 came as %v", err)
		}
	case <-time.After(3 * time.Minute):
		t.Errorf("the shell on a terminal does not end; it said %q", out.text())
	}
	close(size)
	typed.Close()
}

func attach(t *testing.T, p *Pod, main *Container) {
	config := Shell("attached", `echo early; while read line; do echo "got $line"; echo "err $line" >&2; [ "$line" = end ] && exit 4; done; echo eof; exit 6`)
	config.Stdin = true
	config.StdinOnce = true
	k := p.RunContainer(t, config)
	in, typed := io.Pipe()
	out, errs := newExpect(t), newExpect(t)
	ended := make(chan error, 1)
	go func() {
		ended <- k.Attach(streamContext(t), StreamOptions{Stdin: in, Stdout: out, Stderr: errs})
	}()
	_, _ = io.WriteString(typed, "one\n")
	out.wait("got one\n")
	errs.wait("err one\n")
	typed.Close() // the end of stdin, since it is given once
	k.ExpectExit(6)
	out.wait("eof\n")
	select {
	case <-ended:
	case <-time.After(3 * time.Minute):
		t.Error("attaching does not end with the container")
	}
	for _, line := range []string{"got one\n", "err one\n", "eof\n"} {
		k.Says(line)
	}
	k.Remove()

	config = Shell("terminal", `tty; stty size; read line; echo "got $line"; exit 2`)
	config.Stdin, config.Tty = true, true
	k = p.RunContainer(t, config)
	in, typed = io.Pipe()
	out = newExpect(t)
	size := make(chan remotecommand.TerminalSize, 1)
	size <- remotecommand.TerminalSize{Width: 77, Height: 22}
	go func() {
		err := k.Attach(streamContext(t), StreamOptions{Stdin: in, Stdout: out, TTY: true, Sizes: size})
		in.CloseWithError(fmt.Errorf("the attach ended: %w", errors.Join(err, io.EOF)))
		ended <- err
	}()
	wait(t, exitTimeout, "the terminal has the size", func() bool { return k.Sh("stty size </proc/1/fd/0") == "22 77" })
	_, _ = io.WriteString(typed, "two\n")
	out.wait("got two\r\n")
	k.ExpectExit(2)
	<-ended
	close(size)
	typed.Close()
	if got := k.Output(); !strings.HasPrefix(got, "/dev/pts/") && !strings.HasPrefix(got, "/dev/console") {
		t.Errorf("the log of a container with a terminal is %q", got)
	}
	k.Remove()
}
