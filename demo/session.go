package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/schollz/progressbar/v3"
)

// step is one numbered part of the demo.
type step struct {
	title string
	do    func(*session) error
}

// timing is a row of the closing table.
type timing struct {
	title string
	took  time.Duration
}

// session runs commands in one working folder and remembers what they took.
type session struct {
	ctx      context.Context
	bin, dir string
	out      io.Writer
	terminal bool
	timings  []timing
	daemons  []*exec.Cmd
	ids      map[string]string // what one step learned for the next
}

func newSession(ctx context.Context, bin, dir string, out *os.File) *session {
	return &session{ctx: ctx, bin: bin, dir: dir, out: out, terminal: term.IsTerminal(int(out.Fd())), ids: map[string]string{}}
}

func (s *session) path(name string) string { return filepath.Join(s.dir, name) }

// step prints a heading, runs the step and notes its time.
func (s *session) step(st step) error {
	fmt.Fprintf(s.out, "\n== %d/%d %s\n", len(s.timings)+1, len(steps), st.title)
	start := time.Now()
	err := st.do(s)
	s.timings = append(s.timings, timing{st.title, time.Since(start)})
	if err != nil {
		return fmt.Errorf("%s: %w", st.title, err)
	}
	return nil
}

// command prepares one of our binaries; the working folder is the demo's.
func (s *session) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

// sh runs a command that has to succeed and shows its output.
func (s *session) sh(name string, args ...string) (string, error) {
	out, code, err := s.try(name, args...)
	if err == nil && code != 0 {
		err = fmt.Errorf("`%s` ended with exit code %d", line(name, args), code)
	}
	return out, err
}

// try runs a command, shows its output, and returns both output and exit code.
func (s *session) try(name string, args ...string) (string, int, error) {
	fmt.Fprintf(s.out, "$ %s\n", line(name, args))
	cmd := s.command(name, args...)
	var all bytes.Buffer
	spin := s.spinner()
	show := &indenter{to: s.out, before: spin.clear}
	cmd.Stdout = io.MultiWriter(&all, show)
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	spin.stop()
	show.flush()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return all.String(), exit.ExitCode(), nil
	}
	return all.String(), cmd.ProcessState.ExitCode(), err
}

// refused runs a command that has to be refused, and checks that the reason names what it should.
func (s *session) refused(reasons []string, name string, args ...string) error {
	out, code, err := s.try(name, args...)
	if err != nil {
		return err
	}
	if code == 0 {
		return fmt.Errorf("`%s` was let through, it had to be refused", line(name, args))
	}
	for _, r := range reasons {
		if !strings.Contains(out, r) {
			return fmt.Errorf("`%s` was refused, but the reason does not name %q", line(name, args), r)
		}
	}
	fmt.Fprintf(s.out, "  => refused, exit code %d\n", code)
	return nil
}

// daemon starts a command that stays, and waits until it prints a line that holds ready.
func (s *session) daemon(ready, name string, args ...string) (string, error) {
	fmt.Fprintf(s.out, "$ %s &\n", line(name, args))
	cmd := s.command(name, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	log, err := os.Create(s.path(strings.ReplaceAll(name+"-"+args[0], "/", "-") + ".log"))
	if err != nil {
		return "", err
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("starting %s: %w", name, err)
	}
	s.daemons = append(s.daemons, cmd)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		fmt.Fprintf(s.out, "  %s\n", lines.Text())
		if strings.Contains(lines.Text(), ready) {
			go io.Copy(log, out)
			return lines.Text(), nil
		}
	}
	text, _ := os.ReadFile(log.Name())
	return "", fmt.Errorf("%s ended before it was ready: %s", name, text)
}

// close stops the daemons, last first.
func (s *session) close() error {
	var errs []error
	for i := len(s.daemons) - 1; i >= 0; i-- {
		d := s.daemons[i]
		d.Process.Signal(syscall.SIGTERM)
		err := d.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// report prints the table of step times.
func (s *session) report() {
	fmt.Fprintf(s.out, "\n%-62s %10s\n", "step", "time")
	var sum time.Duration
	for _, t := range s.timings {
		fmt.Fprintf(s.out, "%-62s %9.1fs\n", t.title, t.took.Seconds())
		sum += t.took
	}
	fmt.Fprintf(s.out, "%-62s %9.1fs\n", "all", sum.Seconds())
}

func line(name string, args []string) string {
	words := []string{name}
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " '\"$") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// indenter prefixes every line, and clears the spinner before it writes.
type indenter struct {
	to     io.Writer
	before func()
	mu     sync.Mutex
	rest   []byte
}

func (w *indenter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.before()
		fmt.Fprintf(w.to, "  %s\n", w.rest[:i])
		w.rest = w.rest[i+1:]
	}
}

func (w *indenter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rest) > 0 {
		fmt.Fprintf(w.to, "  %s\n", w.rest)
		w.rest = nil
	}
}

// spinner shows on a terminal that something is going on; in a log it is silent.
type spinner struct{ bar *progressbar.ProgressBar }

func (s *session) spinner() spinner {
	if !s.terminal {
		return spinner{}
	}
	return spinner{progressbar.NewOptions(-1, progressbar.OptionSetWriter(s.out), progressbar.OptionSpinnerType(14),
		progressbar.OptionSetElapsedTime(true), progressbar.OptionClearOnFinish(), progressbar.OptionSetDescription("working"),
		progressbar.OptionSpinnerCustom([]string{"|", "/", "-", `\`}))}
}

func (s spinner) clear() {
	if s.bar != nil {
		s.bar.Clear()
	}
}

func (s spinner) stop() {
	if s.bar != nil {
		s.bar.Finish()
	}
}
