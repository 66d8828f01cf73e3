package policy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/cloister/cloister/author/manifest"
	"github.com/cloister/cloister/author/policy"
	"github.com/cloister/cloister/host/pod"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/test/fakeguest"
)

// machine is a VM whose guest is a fakeguest behind a real gate.
type machine struct {
	*yamux.Session
	exited chan struct{}
}

func boot(g *fakeguest.Guest) (*machine, error) {
	host, guest := net.Pipe()
	c := yamux.DefaultConfig()
	c.EnableKeepAlive, c.LogOutput, c.StreamOpenTimeout = false, io.Discard, 0
	s, err := yamux.Client(host, c)
	if err != nil {
		return nil, err
	}
	m := &machine{Session: s, exited: make(chan struct{})}
	go func() {
		defer close(m.exited)
		_ = g.Serve(guest)
		guest.Close()
	}()
	return m, nil
}

func (m *machine) Dial(_ context.Context, port uint32) (net.Conn, error) {
	s, err := m.OpenStream()
	if err != nil {
		return nil, err
	}
	_, err = s.Write([]byte{byte(port >> 24), byte(port >> 16), byte(port >> 8), byte(port)})
	return s, err
}
func (m *machine) Exited() <-chan struct{}    { return m.exited }
func (m *machine) Err() error                 { return errors.New("the machine has ended") }
func (m *machine) Stop(context.Context) error { err := m.Close(); <-m.exited; return err }
func (m *machine) FatalReason() string        { return "" }
func (m *machine) ConsoleTail(int) []string   { return nil }

// noWait is a clock without pauses.
type noWait struct{}

func (noWait) Now() time.Time                                   { return time.Time{} }
func (noWait) Sleep(ctx context.Context, _ time.Duration) error { return ctx.Err() }

// TestRestarts runs a pod whose containers are restarted, with the host's supervisor and the policy that the author
// makes for it.
func TestRestarts(t *testing.T) {
	plan, m := loadPlan(t, "testdata/full.yaml")
	base, err := os.MkdirTemp("", "pod") // short: sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	dirs := paths.At(filepath.Join(base, "h"), filepath.Join(base, "r"))
	if err := dirs.Ensure(); err != nil {
		t.Fatal(err)
	}
	setup, web := &plan.Containers[0], &plan.Containers[1]
	plan.Containers = plan.Containers[:2]
	setup.RestartPolicy, web.RestartPolicy = "Always", "Always"
	var setupRuns, webRuns atomic.Int32
	up := make(chan struct{})
	g := &fakeguest.Guest{
		Gate: newEngine(t, plan, policy.Options{ExecCommands: map[string][][]string{web.Name: manifest.ExecCommands(m)[web.Name]}}),
		Programs: map[string]fakeguest.Program{
			setup.Create.GetContainerId(): func(context.Context, *fakeguest.Process) int { return int(2 - setupRuns.Add(1)) },
			web.Create.GetContainerId(): func(ctx context.Context, p *fakeguest.Process) int {
				n := webRuns.Add(1)
				fmt.Fprintln(p.Stdout, "run", n)
				if n < 3 {
					return int(n - 1) // Always means also after success
				}
				close(up)
				select {
				case <-p.Signals:
					return 143
				case <-ctx.Done():
					return 137
				}
			},
		},
		Exec: func(_ context.Context, p *fakeguest.Process) int { fmt.Fprint(p.Stdout, "fine"); return 0 },
	}
	running := make(chan struct{})
	starts := 0
	done := make(chan error, 1)
	var res pod.Result
	go func() {
		var err error
		res, err = pod.Run(context.Background(), pod.Options{
			Spec: pod.Spec{Plan: plan, Grace: time.Minute}, Dirs: dirs, Clock: noWait{},
			StartVM: func(context.Context, vmm.Config) (pod.Machine, error) { return boot(g) },
			OnEvent: func(e pod.Event) {
				if e.Step == pod.StepStart && e.Container == web.Name {
					if starts++; starts == 3 {
						close(running)
					}
				}
			},
		})
		done <- err
	}()
	for _, c := range []chan struct{}{running, up} {
		select {
		case <-c:
		case err := <-done:
			t.Fatalf("the pod has ended early: %+v, %v", res, err)
		}
	}
	s, err := pod.Lookup(dirs, plan.Name)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{setup.Create.GetContainerId() + "-r1", web.Create.GetContainerId() + "-r2"} {
		if s.Containers[i].ID != want {
			t.Errorf("container %s has the id %s, expected %s", s.Containers[i].Name, s.Containers[i].ID, want)
		}
	}
	var out bytes.Buffer
	code, err := pod.Exec(t.Context(), dirs, plan.Name, pod.ExecOptions{
		Container: web.Name, Argv: []string{"/bin/healthy", "--quick"}, Stdout: &out,
	})
	if err != nil || code != 0 || out.String() != "fine" {
		t.Errorf("a program in the restarted container: %d, %q, %v", code, out.String(), err)
	}
	if err := pod.Stop(t.Context(), dirs, plan.Name, -1); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || res.ExitCode != 143 {
		t.Errorf("exit code %d, %v, expected that of SIGTERM", res.ExitCode, err)
	}
	out.Reset()
	if err := pod.Logs(t.Context(), dirs, plan.Name, pod.LogOptions{Container: web.Name, Stdout: &out}); err != nil || out.String() != "run 1\nrun 2\nrun 3\n" {
		t.Errorf("logs are %q, %v", out.String(), err)
	}
}
