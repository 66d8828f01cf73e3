package containerd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Daemon is a private containerd.
type Daemon struct {
	Address string // path of the unix socket of its API, CRI included
	Network Network
	Version string // as in Options

	t      testing.TB
	dir    string
	bin    string
	opts   Options
	before snapshot

	mu   sync.Mutex
	log  bytes.Buffer
	cmd  *exec.Cmd
	done chan struct{}
}

const (
	startTimeout = 3 * time.Minute
	stopTimeout  = 2 * time.Minute
	lastTimeout  = 20 * time.Second // for processes that are on their way out when the test has ended
)

// Start starts a containerd that goes with the test. Anything that it or its shims leave behind is an error of the test.
func Start(t testing.TB, opts Options) *Daemon {
	t.Helper()
	Need(t)
	if opts.Pause == "" {
		opts.Pause = PauseImage
	}
	dir, err := os.MkdirTemp("", "ctd")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{t: t, dir: dir, bin: binaries(t, opts.Version), opts: opts, Version: opts.Version, before: takeSnapshot()}
	d.Address = d.path("containerd.sock")
	if d.Network, err = newNetwork(opts.IPv6); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"config.toml":                            d.mainConfig(),
		"cni/10-" + d.Network.Name + ".conflist": d.Network.conflist(d.path("addresses")),
	}
	for name, text := range d.dropIns() {
		files["conf.d/"+name] = text
	}
	for name, text := range opts.hosts() {
		files["certs.d/"+name] = text
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(d.path(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.path(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(d.end)
	d.start()
	return d
}

func (d *Daemon) path(name string) string { return filepath.Join(d.dir, name) }

// NRI is the socket for plugins of the node resource interface, for version 1.7 and later.
func (d *Daemon) NRI() string { return d.path("nri.sock") }

// StateDir is containerd's state directory; bundles of tasks are below io.containerd.runtime.v2.task/NAMESPACE/ID.
func (d *Daemon) StateDir() string { return d.path("state") }

// start starts the process and returns when it says that it is up.
func (d *Daemon) start() {
	d.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(d.bin, "containerd"), "--config", d.path("config.toml"), "--log-level", "debug")
	cmd.Dir = d.dir
	cmd.Env = append(os.Environ(), d.opts.Env...)
	cmd.Env = append(cmd.Env, "PATH="+strings.Join(append(d.opts.Path, d.bin, os.Getenv("PATH")), ":"), "TMPDIR="+d.dir)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt of the test is for the test, which then ends its daemons
	err = cmd.Start()
	w.Close()
	if err != nil {
		d.t.Fatal(err)
	}
	done := make(chan struct{})
	up := make(chan struct{})
	go d.follow(r, up)
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	d.mu.Lock()
	d.cmd, d.done = cmd, done
	d.mu.Unlock()
	select {
	case <-up:
	case <-done:
		d.t.Fatalf("containerd ended while starting: %v\n%s", cmd.ProcessState, d.Tail(40))
	case <-time.After(startTimeout):
		d.t.Fatalf("containerd did not come up within %s:\n%s", startTimeout, d.Tail(40))
	}
}

// follow keeps the log and closes up at the line that says that the daemon serves.
func (d *Daemon) follow(r io.ReadCloser, up chan<- struct{}) {
	defer r.Close()
	s := bufio.NewScanner(r)
	s.Buffer(nil, 16<<20)
	for said := false; s.Scan(); {
		d.mu.Lock()
		d.log.Write(append(s.Bytes(), '\n'))
		d.mu.Unlock()
		if !said && bytes.Contains(s.Bytes(), []byte("containerd successfully booted")) {
			said = true
			close(up)
		}
	}
}

// Logs is what containerd has said so far.
func (d *Daemon) Logs() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

// Tail is the last lines of Logs.
func (d *Daemon) Tail(lines int) string {
	all := strings.Split(strings.TrimRight(d.Logs(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Kill kills containerd by SIGKILL. Shims and pods stay.
func (d *Daemon) Kill() {
	d.t.Helper()
	d.signal(syscall.SIGKILL)
}

// Restart ends containerd, by SIGTERM when it runs, and starts it again.
func (d *Daemon) Restart() {
	d.t.Helper()
	d.signal(syscall.SIGTERM)
	d.start()
}

// PID is that of the running containerd.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

func (d *Daemon) signal(s syscall.Signal) {
	d.t.Helper()
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(s) // it may have ended
	select {
	case <-d.done:
	case <-time.After(stopTimeout):
		_ = d.cmd.Process.Kill()
		<-d.done
		d.t.Errorf("containerd did not end within %s of %s:\n%s", stopTimeout, s, d.Tail(20))
	}
}

// Namespace is the one of CRI, in which Ctr works unless it is told otherwise.
const Namespace = "k8s.io"

// Command is ctr with arguments, of the daemon's own version, in a namespace ("" is Namespace).
func (d *Daemon) Command(ctx context.Context, namespace string, args ...string) *exec.Cmd {
	if namespace == "" {
		namespace = Namespace
	}
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "ctr"), append([]string{"-a", d.Address, "-n", namespace}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+d.bin+":"+os.Getenv("PATH"))
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Ctr runs ctr and returns what it printed on stdout. An error has what it printed on stderr.
func (d *Daemon) Ctr(ctx context.Context, namespace string, args ...string) (string, error) {
	cmd := d.Command(ctx, namespace, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// end stops the daemon and what it runs, checks that nothing is left and removes its files.
func (d *Daemon) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	d.clear(ctx)
	d.signal(syscall.SIGTERM)
	left := d.leftovers()
	for deadline := time.Now().Add(lastTimeout); len(left) > 0 && time.Now().Before(deadline); left = d.leftovers() {
		time.Sleep(50 * time.Millisecond) // a shim answers its last call before it ends, and containerd waits for none of them
	}
	tell := d.t.Errorf
	if d.opts.MayLeave {
		tell = d.t.Logf
	}
	for _, l := range left {
		tell("left behind: %s", l)
	}
	if d.t.Failed() {
		d.keepLog()
		d.t.Logf("the end of containerd's log:\n%s", d.Tail(25))
	}
	d.scrub()
	if err := d.Network.remove(); err != nil {
		d.t.Error(err)
	}
	if err := os.RemoveAll(d.dir); err != nil {
		d.t.Error(err)
	}
}

// keepLog writes the whole log into the folder that CLOISTER_TEST_LOGS names, for who looks for a fault.
func (d *Daemon) keepLog() {
	dir := os.Getenv("CLOISTER_TEST_LOGS")
	if dir == "" {
		return
	}
	name := filepath.Join(dir, strings.ReplaceAll(d.t.Name(), "/", "_")+".log")
	if err := os.WriteFile(name, []byte(d.Logs()), 0o644); err != nil {
		d.t.Log(err)
	}
}

// clear removes the tasks and containers of a test that did not get so far. CRI's pods are their test's to remove.
func (d *Daemon) clear(ctx context.Context) {
	select {
	case <-d.done:
		return // its end was the test's wish or is reported already
	default:
	}
	spaces, err := d.Ctr(ctx, "", "namespaces", "ls", "-q")
	if err != nil {
		d.t.Log(err)
		return
	}
	for _, ns := range strings.Fields(spaces) {
		tasks, _ := d.Ctr(ctx, ns, "tasks", "ls", "-q")
		for _, id := range strings.Fields(tasks) {
			d.t.Errorf("left behind: task %s in namespace %s", id, ns)
			_, _ = d.Ctr(ctx, ns, "tasks", "rm", "-f", id)
		}
		containers, _ := d.Ctr(ctx, ns, "containers", "ls", "-q")
		for _, id := range strings.Fields(containers) {
			d.t.Errorf("left behind: container %s in namespace %s", id, ns)
			_, _ = d.Ctr(ctx, ns, "containers", "rm", id)
		}
	}
}
