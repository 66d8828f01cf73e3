package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
)

// A template is a VM that was stopped once its guest was ready, as three files of a directory. Start with Config.Template goes on from there
// with a copy of the memory, so that neither the kernel nor the guest's program starts again. What differs between VMs of one template
// (network cards, the shared directory) is not in it and is plugged in before the copy runs.
const (
	templateMemory = "memory" // sparse; pages of zeros are holes
	templateState  = "state"  // what QEMU writes to move a VM, without the memory
	templateInfo   = "template.json"
)

// templateVersion changes with the meaning of the files.
const templateVersion = 1

// maxTemplateState bounds the state's file. That of a VM of this kind has some hundred kB.
const maxTemplateState = 16 << 20

// sandboxedGuest is the word of the kernel's command line of guests that can prove nothing: they stop where they find a TPM or a TEE.
const sandboxedGuest = "cloister.sandboxed"

// whyNoTemplate says why a VM can neither be a template nor start from one. A guest that proves what it is, or keeps something from its
// host, never can: its start would not be its own, and its memory would lie in a file.
func whyNoTemplate(c *vmm.Config) error {
	refuse := func(why string) error {
		return fmt.Errorf("a template of a virtual machine %s: %w", why, errors.ErrUnsupported)
	}
	switch {
	case c.TEE != nil:
		return refuse("that is confidential")
	case c.TPM != nil || c.InitdataImage != nil || c.FirmwareCode != "" || c.FirmwareVars != "":
		return refuse("whose start is measured")
	case !slices.Contains(strings.Fields(c.Cmdline), sandboxedGuest):
		return refuse("whose guest is not a sandboxed one")
	case c.Kernel == "" || c.RootImage != "" || len(c.ExtraDisks) > 0:
		return refuse("with disks of its own")
	case c.Hugepages:
		return refuse("with huge pages")
	case c.Vsock:
		return refuse("with vsock")
	case c.UserNetwork:
		return refuse("with the user-mode network")
	}
	return whyNoPlug(c)
}

// templateShape is the part of a configuration that all VMs of one template have in common.
func templateShape(c *vmm.Config) vmm.Config {
	shape := *c
	shape.NICs, shape.Share, shape.Started, shape.MemoryCopier, shape.Template, shape.ConsoleLog, shape.NetNS = nil, nil, nil, nil, "", "", ""
	return shape
}

// TemplateKey names the template that a VM can start from: VMs with the same key differ in nothing that a template holds. An error that
// wraps errors.ErrUnsupported means that there is none for this VM.
func TemplateKey(c vmm.Config) (string, error) {
	if err := whyNoTemplate(&c); err != nil {
		return "", err
	}
	program, err := exec.LookPath(programOf(&c))
	if err != nil {
		return "", fmt.Errorf("looking for the virtual machine monitor: %w", err)
	}
	shape := templateShape(&c)
	shape.Name, shape.Dir = "template", "/"
	boot := &bootFiles{smallFirmware: smallFirmware(program), qmp: 3, console: 4, agent: 5, memory: 6}
	args, err := qemuArgs(&shape, boot)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%d %q", templateVersion, args)
	for _, name := range []string{program, boot.smallFirmware, c.Kernel, c.Initrd} {
		if name == "" {
			continue
		}
		// Reading all of them takes longer than a start; an update gives a file another number or time,
		// and the time of its last change is not for anybody to set.
		info, err := os.Stat(name)
		if err != nil {
			return "", fmt.Errorf("naming the template of a virtual machine: %w", err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return "", fmt.Errorf("naming the template of a virtual machine: %s has no number", name)
		}
		fmt.Fprintf(sum, " %q %d %d %d %d %d", name, info.Size(), info.ModTime().UnixNano(), st.Dev, st.Ino, st.Ctim.Nano())
	}
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

func programOf(c *vmm.Config) string {
	if c.Program != "" {
		return c.Program
	}
	return defaultProgram(c)
}

// templateFacts are what the description of a template says.
type templateFacts struct {
	Version   int    `json:"version"`
	Key       string `json:"key"`
	MemoryMiB int    `json:"memory_mib"`
	MemorySum uint32 `json:"memory_sum"`
	StateSize int64  `json:"state_size"`
	StateSum  uint32 `json:"state_sum"`
}

// template is one that is being used.
type template struct {
	facts         templateFacts
	memory, state *os.File
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// TemplateError is a start that failed by its template, and not by what this VM has of its own.
type TemplateError struct{ Err error }

func (e *TemplateError) Error() string { return e.Err.Error() }
func (e *TemplateError) Unwrap() error { return e.Err }

// openTemplate opens the template of a VM and checks that it is one, and the right one. Files that are open stay usable when somebody removes
// the template.
func openTemplate(c *vmm.Config) (_ *template, err error) {
	defer func() {
		if err != nil {
			err = &TemplateError{fmt.Errorf("template %s: %w", c.Template, err)}
		}
	}()
	key, err := TemplateKey(*c)
	if err != nil {
		return nil, err
	}
	t := &template{}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	open := func(name string) (*os.File, error) {
		f, err := os.OpenFile(filepath.Join(c.Template, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			f.Close()
			return nil, errors.Join(err, fmt.Errorf("%s is no regular file", name))
		}
		return f, nil
	}
	info, err := open(templateInfo)
	if err != nil {
		return nil, err
	}
	defer info.Close()
	if err := json.NewDecoder(io.LimitReader(info, 1<<16)).Decode(&t.facts); err != nil {
		return nil, fmt.Errorf("reading %s: %w", templateInfo, err)
	}
	if f := t.facts; f.Version != templateVersion || f.Key != key || f.MemoryMiB != c.MemoryMiB {
		return nil, errors.New("it is of another virtual machine")
	}
	if t.memory, err = open(templateMemory); err != nil {
		return nil, err
	}
	if t.state, err = open(templateState); err != nil {
		return nil, err
	}
	if info, err := t.memory.Stat(); err != nil || info.Size() != int64(c.MemoryMiB)<<20 {
		return nil, errors.Join(err, errors.New("its memory has not the size of the virtual machine's"))
	}
	sum, n, err := sumState(t.state)
	if err != nil {
		return nil, err
	}
	if n != t.facts.StateSize || sum != t.facts.StateSum {
		return nil, errors.New("its state is damaged")
	}
	return t, nil
}

// sumState reads the state's file and goes back to its begin.
func sumState(f *os.File) (uint32, int64, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, 0, err
	}
	h := crc32.New(castagnoli)
	n, err := io.Copy(h, io.LimitReader(f, maxTemplateState+1))
	if err != nil {
		return 0, 0, fmt.Errorf("reading the state: %w", err)
	}
	if n > maxTemplateState {
		return 0, 0, fmt.Errorf("the state has more than %d bytes", maxTemplateState)
	}
	_, err = f.Seek(0, io.SeekStart)
	return h.Sum32(), n, err
}

func (t *template) close() {
	for _, f := range []*os.File{t.memory, t.state} {
		if f != nil {
			f.Close()
		}
	}
}

// newMemory makes a guest's memory as a file without a name.
func newMemory(mib int) (*os.File, error) {
	fd, err := unix.MemfdCreate("cloister-guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making the guest's memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "guest memory")
	if err := f.Truncate(int64(mib) << 20); err != nil {
		f.Close()
		return nil, fmt.Errorf("making the guest's memory: %w", err)
	}
	return f, nil
}

// SaveTemplate starts a VM of this configuration without its network cards and its shared directory, waits until its guest is ready, and
// saves it in the directory dir, which is there and empty. ready, when not nil, is called with the VM once the guest's channel answers; it
// must leave no connection behind. limit is the most bytes that the saved memory may take. The VM has ended when SaveTemplate returns.
func SaveTemplate(ctx context.Context, cfg vmm.Config, dir string, limit int64, ready func(context.Context, *VM) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("saving virtual machine %s as a template: %w", cfg.Name, err)
		}
	}()
	key, err := TemplateKey(cfg)
	if err != nil {
		return err
	}
	shape := templateShape(&cfg)
	shape.Started = cfg.Started
	memory, err := newMemory(shape.MemoryMiB)
	if err != nil {
		return err
	}
	defer memory.Close()
	v, err := startWith(ctx, shape, memory)
	if err != nil {
		return err
	}
	defer func() {
		now, cancel := context.WithCancel(context.WithoutCancel(ctx))
		cancel()
		err = errors.Join(err, v.Stop(now))
	}()
	if err := v.ping(ctx); err != nil {
		return err
	}
	if ready != nil {
		if err := ready(ctx, v); err != nil {
			return err
		}
	}
	facts := templateFacts{Version: templateVersion, Key: key, MemoryMiB: shape.MemoryMiB}
	if facts.StateSum, facts.StateSize, err = v.saveState(ctx, filepath.Join(dir, templateState)); err != nil {
		return err
	}
	if facts.MemorySum, err = saveMemory(memory, filepath.Join(dir, templateMemory), limit); err != nil {
		return err
	}
	text, err := json.Marshal(facts)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, templateInfo), text, 0o600)
}

// saveState stops the guest and writes the state of the machine without its memory.
func (v *VM) saveState(ctx context.Context, name string) (sum uint32, size int64, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	if err := v.qmp.execute(ctx, "stop"); err != nil {
		return 0, 0, err
	}
	if err := v.prepareMove(ctx, f); err != nil {
		return 0, 0, err
	}
	if err := v.qmp.run(ctx, "migrate", map[string]string{"uri": "fd:" + moveFile}, nil); err != nil {
		return 0, 0, err
	}
	if err := v.moved(ctx); err != nil {
		return 0, 0, err
	}
	return sumState(f)
}

// moveFile is the name that QEMU has for the file with the state.
const moveFile = "state"

// prepareMove sets how the state is written and read: without the memory, which is a file that both sides have.
func (v *VM) prepareMove(ctx context.Context, state *os.File) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	if err := v.qmp.run(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []capability{{"x-ignore-shared", true}, {"events", true}},
	}, nil); err != nil {
		return err
	}
	return v.qmp.run(ctx, "getfd", map[string]string{"fdname": moveFile}, nil, state)
}

// moved waits until the state is written or read.
func (v *VM) moved(ctx context.Context) error {
	for {
		select {
		case status := <-v.moves:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				return fmt.Errorf("moving the machine's state: %s", status)
			}
		case <-v.qmp.done:
			return v.explainStart(v.qmp.failure())
		case <-ctx.Done():
			return fmt.Errorf("moving the machine's state: %w", ctx.Err())
		}
	}
}

// ping waits until the guest's end of the channel answers. Nothing of it stays in the guest.
func (v *VM) ping(ctx context.Context) error {
	answer := make(chan error, 1)
	go func() {
		_, err := v.mux.Ping()
		// The multiplexer gives up sooner than a guest may come up on a host that has better things to do.
		for errors.Is(err, yamux.ErrTimeout) && ctx.Err() == nil {
			_, err = v.mux.Ping()
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		if err != nil {
			return fmt.Errorf("waiting for the guest: %w", err)
		}
		return nil
	case <-v.exited:
		return v.Err()
	case <-ctx.Done():
		return fmt.Errorf("waiting for the guest: %w", ctx.Err())
	}
}
