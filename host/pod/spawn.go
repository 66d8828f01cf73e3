package pod

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/cloister/cloister/internal/paths"
)

// SuperviseCommand is the hidden command of the CLI that calls SuperviseMain with the file it is given.
const SuperviseCommand = "__supervise"

// message is what a detached supervisor tells the process that started it: every event, and at last that the pod runs or why not.
type message struct {
	Event   *Event `json:"event,omitempty"`
	Running bool   `json:"running,omitempty"`
	Done    bool   `json:"done,omitempty"`
	Error   string `json:"error,omitempty"`
}

// detached is the content of the file given to a detached supervisor.
type detached struct {
	Spec Spec       `json:"spec"`
	Dirs paths.Dirs `json:"dirs"`
}

const messageLimit = 1 << 20

// Spawn runs the pod under a supervisor process of its own and returns when its containers run. exe is the CLI's program file. When ctx
// ends before that, the supervisor is asked to stop.
func Spawn(ctx context.Context, exe string, dirs paths.Dirs, spec Spec, onEvent func(Event)) error {
	o := Options{Spec: spec, Dirs: dirs}
	if err := o.complete(); err != nil {
		return err
	}
	name := spec.Plan.Name
	file, err := writeDetached(dirs, spec)
	if err != nil {
		return err
	}
	defer os.Remove(file) // the supervisor removes it first, unless it never started
	if err := os.MkdirAll(o.LogDir, 0o700); err != nil {
		return fmt.Errorf("making the log directory: %w", err)
	}
	// The name does not end in .log: the supervisor removes the logs of earlier pods.
	log, err := os.OpenFile(filepath.Join(o.LogDir, "supervisor"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("opening the supervisor's log: %w", err)
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(exe, SuperviseCommand, file)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	s := bufio.NewScanner(r)
	s.Buffer(nil, messageLimit)
	for s.Scan() {
		var m message
		if err := json.Unmarshal(s.Bytes(), &m); err != nil {
			return fmt.Errorf("reading from the supervisor of pod %s: %w", name, err)
		}
		switch {
		case m.Event != nil:
			if onEvent != nil {
				onEvent(*m.Event)
			}
		case m.Error != "":
			_ = cmd.Wait()
			return errors.New(m.Error)
		case m.Running:
			return cmd.Process.Release()
		case m.Done:
			return cmd.Wait() // a short pod is over already
		}
	}
	err = cmd.Wait()
	return fmt.Errorf("the supervisor of pod %s ended (%v) before the pod ran; see %s", name, err, log.Name())
}

func writeDetached(dirs paths.Dirs, spec Spec) (string, error) {
	b, err := json.Marshal(detached{Spec: spec, Dirs: dirs})
	if err != nil {
		return "", fmt.Errorf("writing the order for the supervisor: %w", err)
	}
	f, err := os.CreateTemp(dirs.Run, ".order-*")
	if err != nil {
		return "", fmt.Errorf("writing the order for the supervisor: %w", err)
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("writing the order for the supervisor: %w", err)
	}
	return f.Name(), nil
}

// SuperviseMain is the body of the hidden command: it runs the pod described by the file and reports on file descriptor 3. ctx ends when
// the process is asked to terminate.
func SuperviseMain(ctx context.Context, file string, logger *slog.Logger) error {
	report := os.NewFile(3, "report")
	if report == nil {
		return errors.New("the supervisor command is for internal use: it reports to the process that started it")
	}
	syscall.CloseOnExec(3)
	return supervise(ctx, file, report, Options{Logger: logger})
}

func supervise(ctx context.Context, file string, report *os.File, o Options) error {
	send := func(m message) {
		// Nobody has to listen; the state file says the same.
		if b, err := json.Marshal(m); err == nil && report != nil {
			_, _ = report.Write(append(b, '\n'))
		}
	}
	err := func() error {
		b, err := readLimited(file, 64<<20)
		if err != nil {
			return fmt.Errorf("reading the order for the supervisor: %w", err)
		}
		os.Remove(file)
		var d detached
		if err := json.Unmarshal(b, &d); err != nil {
			return fmt.Errorf("reading the order for the supervisor: %w", err)
		}
		o.Spec, o.Dirs = d.Spec, d.Dirs
		o.OnEvent = func(e Event) {
			send(message{Event: &e})
			if e.Step == StepRunning {
				send(message{Running: true})
				report.Close()
				report = nil
			}
		}
		_, err = Run(ctx, o)
		return err
	}()
	if err != nil {
		send(message{Error: err.Error()})
		return err
	}
	send(message{Done: true})
	return nil
}
