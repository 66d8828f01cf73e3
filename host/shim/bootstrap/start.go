package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/internal/paths"
)

// Files in a bundle. Other programs know the first three: containerd before 2.0 finds a shim again through address, tools look at shim.pid,
// and containerd reads log.
const (
	addressFile = "address"
	pidFile     = "shim.pid"
	logFile     = "log"
)

// ErrNoSandbox says that the sandbox of a container has no shim that answers.
var ErrNoSandbox = errors.New("the sandbox's shim does not answer")

// start finds or makes the shim of the sandbox and returns its address.
func (p *Params) start(ctx context.Context, exe string) (string, error) {
	if err := p.readBundle(); err != nil {
		return "", err
	}
	if p.Kind == KindContainer {
		address, err := p.findSandbox(ctx)
		if err != nil {
			return "", err
		}
		return address, paths.WriteFile(filepath.Join(p.Bundle, addressFile), []byte(address), 0o644)
	}
	address := SocketAddress(p.SocketDir, p.Address, p.Namespace, p.SandboxID)
	l, err := listen(ctx, address)
	if errors.Is(err, errServed) { // a second start of the same sandbox
		return address, paths.WriteFile(filepath.Join(p.Bundle, addressFile), []byte(address), 0o644)
	}
	if err != nil {
		return "", fmt.Errorf("starting the shim of %s: %w", p.ID, err)
	}
	defer l.Close()
	if err := p.spawn(l, exe, address); err != nil {
		path, _ := socketPath(address)
		return "", errors.Join(fmt.Errorf("starting the shim of %s: %w", p.ID, err), os.Remove(path))
	}
	return address, nil
}

// findSandbox is the address of the shim of the container's sandbox. The sandbox may have been made before a change of the socket directory,
// so that the default one, and what is written in its bundle next to ours, count too.
func (p *Params) findSandbox(ctx context.Context) (string, error) {
	candidates := []string{SocketAddress(p.SocketDir, p.Address, p.Namespace, p.SandboxID)}
	if p.SocketDir != "" {
		candidates = append(candidates, SocketAddress("", p.Address, p.Namespace, p.SandboxID))
	}
	if b, err := readSmall(filepath.Join(filepath.Dir(p.Bundle), p.SandboxID, addressFile)); err == nil {
		candidates = append(candidates, strings.TrimSpace(string(b)))
	}
	for _, c := range candidates {
		if answers(ctx, c) {
			return c, nil
		}
	}
	return "", fmt.Errorf("starting container %s in sandbox %s: %w\nhint: the pod's virtual machine has ended; Kubernetes makes a new sandbox",
		p.ID, p.SandboxID, ErrNoSandbox)
}

// spawn starts the server: this program without a verb, in a session of its own, with the socket as descriptor 3, the runtime options as
// stdin and containerd's log as stdout and stderr.
func (p *Params) spawn(l interface{ File() (*os.File, error) }, exe, address string) error {
	socket, err := l.File()
	if err != nil {
		return fmt.Errorf("duplicating the socket: %w", err)
	}
	defer socket.Close()
	logTo, err := openLog(filepath.Join(p.Bundle, logFile))
	if err != nil {
		return err
	}
	defer logTo.Close()
	stdin, err := p.optionsFile()
	if err != nil {
		return err
	}
	defer stdin.Close()
	cmd := exec.Command(exe, p.serveArgs()...)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = p.Bundle, p.serveEnv(), []*os.File{socket}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, logTo, logTo
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.startOnThread(cmd); err != nil {
		return err
	}
	if err := p.settle(cmd.Process.Pid, address); err != nil {
		return errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return cmd.Process.Release()
}

// startOnThread starts the server with a core scheduling cookie of its own when containerd asks for it (enable SCHED_CORE): a new process has
// the cookie of the thread that forked it.
func (p *Params) startOnThread(cmd *exec.Cmd) error {
	if p.schedule {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		const processGroup = 2 // PR_SCHED_CORE_SCOPE_PROCESS_GROUP
		if err := unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_CREATE, 0, processGroup, 0); err != nil {
			return fmt.Errorf("making a core scheduling cookie: %w\nhint: needs a kernel with CONFIG_SCHED_CORE and a processor with SMT; unset SCHED_CORE", err)
		}
	}
	return cmd.Start()
}

// settle gives the new server its cgroup and memory priority, and says in the bundle where it is.
func (p *Params) settle(pid int, address string) error {
	if group := p.shimCgroup(); group != "" {
		if err := joinCgroup("/sys/fs/cgroup", group, pid); err != nil {
			return err
		}
	}
	if err := adjustOOMScore("/proc", os.Getppid(), pid); err != nil {
		return err
	}
	if err := paths.WriteFile(filepath.Join(p.Bundle, pidFile), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return err
	}
	return paths.WriteFile(filepath.Join(p.Bundle, addressFile), []byte(address), 0o644)
}

// adjustOOMScore makes the kernel take the shim before containerd, and its pod before others' system services.
func adjustOOMScore(proc string, parent, pid int) error {
	b, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(parent), "oom_score_adj"))
	if err != nil {
		return fmt.Errorf("reading containerd's OOM score: %w", err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return fmt.Errorf("reading containerd's OOM score: %w", err)
	}
	text := strconv.Itoa(min(score+1, 1000))
	if err := os.WriteFile(filepath.Join(proc, strconv.Itoa(pid), "oom_score_adj"), []byte(text), 0); err != nil {
		return fmt.Errorf("setting the shim's OOM score to %s: %w", text, err)
	}
	return nil
}

// joinCgroup moves the server to a cgroup below root, which exists: the one of version 2, or that of each controller of version 1.
func joinCgroup(root, group string, pid int) error {
	group = filepath.Join("/", group) // no way out
	dirs := []string{filepath.Join(root, group)}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		if dirs, err = filepath.Glob(filepath.Join(root, "*", "cgroup.procs")); err != nil {
			return fmt.Errorf("looking for cgroups: %w", err)
		}
		for i := range dirs {
			dirs[i] = filepath.Join(filepath.Dir(dirs[i]), group)
		}
	}
	joined := false
	for _, d := range dirs {
		err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("moving the shim to cgroup %s: %w", d, err)
		}
		joined = joined || err == nil
	}
	if !joined {
		return fmt.Errorf("moving the shim to cgroup %s: it does not exist\nhint: option ShimCgroup names a cgroup that must be made first", group)
	}
	return nil
}

// optionsFile is a file in memory with the runtime options, for the server's stdin.
func (p *Params) optionsFile() (*os.File, error) {
	if p.Options == nil {
		return os.Open(os.DevNull)
	}
	data, err := proto.Marshal(p.Options)
	if err != nil {
		return nil, fmt.Errorf("writing runtime options: %w", err)
	}
	fd, err := unix.MemfdCreate("options", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a file for runtime options: %w", err)
	}
	f := os.NewFile(uintptr(fd), "options")
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, fmt.Errorf("writing runtime options: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("writing runtime options: %w", err)
	}
	return f, nil
}

// answer is what start prints. Who speaks the bootstrap protocol (containerd 2.3) gets its result. The others get the plain address: 1.6 and
// CRI-O take nothing else, 1.7 to 2.2 read it as version 2, and their MAX_SHIM_VERSION=2 does not say whether JSON is understood, since CRI-O
// inherits it with containerd's library. Only a caller that names 3 or more gets JSON.
func (p *Params) answer(address string, extensions []proto.Message) ([]byte, error) {
	if p.boot {
		r := &bootapi.BootstrapResult{Version: 3, Address: address, Protocol: "ttrpc"}
		for _, e := range extensions {
			if err := r.AddExtension(e); err != nil {
				return nil, fmt.Errorf("writing the bootstrap result: %w", err)
			}
		}
		return proto.Marshal(r)
	}
	if v, err := strconv.Atoi(p.maxShim); err == nil && v >= 3 {
		return json.Marshal(struct {
			Version  int    `json:"version"`
			Address  string `json:"address"`
			Protocol string `json:"protocol"`
		}{3, address, "ttrpc"})
	}
	return []byte(address), nil
}

// readSmall reads a file of a bundle that has one line.
func readSmall(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 4096))
}
