package qemu

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/cloister/cloister/host/vmm"
)

// sandboxedConfig is a VM that can have a template; its files are there.
func sandboxedConfig(t *testing.T) vmm.Config {
	t.Helper()
	dir := t.TempDir()
	c := vmm.Config{
		Name: "vm", Dir: filepath.Join(dir, "vm"), Program: filepath.Join(dir, "qemu"), Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"),
		Cmdline: "quiet cloister.sandboxed", VCPUs: 1, MemoryMiB: 256, MaxMemoryMiB: 512, Accel: vmm.AccelTCG,
	}
	for _, f := range []string{c.Program, c.Kernel, c.Initrd} {
		if err := os.WriteFile(f, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestNoTemplateOfProvenGuests: no VM whose guest proves something, or is protected from its host, is saved or starts from a template,
// whatever else its configuration says.
func TestNoTemplateOfProvenGuests(t *testing.T) {
	for name, edit := range map[string]func(*vmm.Config){
		"SNP":           func(c *vmm.Config) { c.TEE, c.MaxMemoryMiB = &vmm.TEE{Kind: "snp"}, 0 },
		"TDX":           func(c *vmm.Config) { c.TEE, c.MaxMemoryMiB = &vmm.TEE{Kind: "tdx"}, 0 },
		"TPM":           func(c *vmm.Config) { c.TPM = &vmm.TPM{CADir: "/ca"} },
		"initdata":      func(c *vmm.Config) { c.InitdataImage = make([]byte, 512) },
		"firmware":      func(c *vmm.Config) { c.FirmwareCode, c.FirmwareVars = "/code", "/vars" },
		"other guest":   func(c *vmm.Config) { c.Cmdline = "quiet cloister.initdata=required" },
		"similar word":  func(c *vmm.Config) { c.Cmdline = "quiet cloister.sandboxed=no" },
		"huge pages":    func(c *vmm.Config) { c.Hugepages = true },
		"image":         func(c *vmm.Config) { c.RootImage = "/image" },
		"disk":          func(c *vmm.Config) { c.ExtraDisks = []vmm.Disk{{Path: "/disk", Serial: "x"}} },
		"vsock":         func(c *vmm.Config) { c.Vsock = true },
		"microvm":       func(c *vmm.Config) { c.Machine, c.MaxMemoryMiB = vmm.MachineMicroVM, 0 },
		"user network":  func(c *vmm.Config) { c.UserNetwork = true },
		"nothing boots": func(c *vmm.Config) { c.Kernel, c.Initrd = "", "" },
	} {
		c := sandboxedConfig(t)
		edit(&c)
		if key, err := TemplateKey(c); !errors.Is(err, errors.ErrUnsupported) || key != "" {
			t.Errorf("%s: key %q, %v", name, key, err)
		}
		if err := SaveTemplate(t.Context(), c, t.TempDir(), 1<<30, nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: saved, or %v", name, err)
		}
		c.Template = t.TempDir()
		if _, err := openTemplate(&c); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: started, or %v", name, err)
		}
	}
}

func TestTemplateKey(t *testing.T) {
	c := sandboxedConfig(t)
	key, err := TemplateKey(c)
	if err != nil || len(key) != 32 {
		t.Fatalf("%q, %v", key, err)
	}
	for name, edit := range map[string]func(*vmm.Config){
		"name":    func(c *vmm.Config) { c.Name, c.Dir, c.ConsoleLog = "other", "/other", "/log" },
		"network": func(c *vmm.Config) { c.NICs = []vmm.NIC{{ID: "eth0"}} },
		"share":   func(c *vmm.Config) { c.Share = &vmm.Share{Tag: "kataShared", Socket: "/s"} },
		"hooks":   func(c *vmm.Config) { c.Started, c.MemoryCopier = func(int) error { return nil }, []string{"x"} },
	} {
		other := c
		edit(&other)
		if got, err := TemplateKey(other); err != nil || got != key {
			t.Errorf("%s: the key is another, or %v", name, err)
		}
	}
	keys := map[string]string{key: "itself"}
	for name, edit := range map[string]func(*vmm.Config){
		"memory":     func(c *vmm.Config) { c.MemoryMiB = 384 },
		"room":       func(c *vmm.Config) { c.MaxMemoryMiB = 1024 },
		"processors": func(c *vmm.Config) { c.VCPUs = 2 },
		"more":       func(c *vmm.Config) { c.MaxVCPUs = 4 },
		"words":      func(c *vmm.Config) { c.Cmdline += " x" },
		"features":   func(c *vmm.Config) { c.CPUFeatures = "pmu=off" },
		"balloon":    func(c *vmm.Config) { c.Balloon = true },
		"accel":      func(c *vmm.Config) { c.Accel = vmm.AccelKVM },
		"kernel": func(c *vmm.Config) { // an update under the same name
			text := []byte("new")
			if err := errors.Join(os.WriteFile(c.Kernel+".new", text, 0o600), os.Rename(c.Kernel+".new", c.Kernel)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		other := c
		edit(&other)
		got, err := TemplateKey(other)
		if was, there := keys[got]; err != nil || there {
			t.Errorf("%s: the key is that of %q, %v", name, was, err)
		}
		keys[got] = name
	}
}

func TestTemplateArgs(t *testing.T) {
	c := sandboxedConfig(t)
	shape := templateShape(&c)
	args, err := qemuArgs(&shape, &bootFiles{qmp: 3, console: 4, agent: 5, memory: 6, incoming: true, paused: true})
	text := strings.Join(args, " ")
	if err != nil || slices.Contains(args, "-kernel") || slices.Contains(args, "-append") {
		t.Errorf("it boots again: %s, %v", text, err)
	}
	for _, want := range []string{"memory-backend-file,id=mem,size=256M,mem-path=/proc/self/fd/6,share=on", ",memory-backend=mem", " -S ", "-incoming defer"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in %s", want, text)
		}
	}
}

// holes makes a sparse file with random pages at the given places.
func holes(t *testing.T, size int64, pages ...int64) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "memory")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range pages {
		page := make([]byte, memoryPage)
		rand.Read(page)
		if _, err := f.WriteAt(page, at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestCopyPages(t *testing.T) {
	const size = 8 << 20
	from := holes(t, size, 0, memoryPage, 5*memoryPage, 1<<20-memoryPage, 1<<20, 3<<20+7*memoryPage, size-memoryPage)
	if _, err := from.WriteAt(make([]byte, 64<<10), 2<<20); err != nil { // zeros that are written are no data
		t.Fatal(err)
	}
	memory, err := newMemory(size >> 20)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	sum, err := copyPages(t.Context(), memory, from)
	if err != nil {
		t.Fatal(err)
	}
	read := func(f *os.File) string {
		b := make([]byte, size)
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if read(from) != read(memory) {
		t.Error("the copy differs")
	}
	saved := filepath.Join(t.TempDir(), "saved")
	again, err := saveMemory(memory, saved, size)
	if err != nil || again != sum {
		t.Errorf("sum %x of the copy, %x of the original, %v", again, sum, err)
	}
	f, err := os.Open(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if read(f) != read(from) {
		t.Error("the saved memory differs")
	}
	if _, err := saveMemory(memory, saved+"2", memoryPage); err == nil || !strings.Contains(err.Error(), "there is room for 0") {
		t.Errorf("beyond the limit: %v", err)
	}
	// The same page elsewhere is another memory.
	moved := holes(t, size)
	if _, err := moved.WriteAt([]byte(read(from)[:memoryPage]), 9*memoryPage); err != nil {
		t.Fatal(err)
	}
	one := holes(t, size)
	if _, err := one.WriteAt([]byte(read(from)[:memoryPage]), 0); err != nil {
		t.Fatal(err)
	}
	a, aerr := copyPages(t.Context(), holes(t, size), moved)
	b, berr := copyPages(t.Context(), holes(t, size), one)
	if aerr != nil || berr != nil || a == b {
		t.Errorf("%x, %x, %v, %v", a, b, aerr, berr)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := copyPages(ended, holes(t, size), from); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// TestPingWaits: the guest of a template may need longer than the multiplexer waits for one answer.
func TestPingWaits(t *testing.T) {
	ours, theirs, err := socketPair("agent")
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.FileConn(theirs)
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	c := yamux.DefaultConfig()
	c.EnableKeepAlive, c.LogOutput, c.ConnectionWriteTimeout = false, io.Discard, 20*time.Millisecond
	v := &VM{exited: make(chan struct{})}
	if v.mux, err = yamux.Client(ours, c); err != nil {
		t.Fatal(err)
	}
	defer v.mux.Close()
	ended, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := v.ping(ended); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a guest that never comes up: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() {
		if s, err := yamux.Server(far, nil); err == nil {
			<-s.CloseChan()
		}
	})
	if err := v.ping(testContext(t)); err != nil {
		t.Errorf("a guest that comes up late: %v", err)
	}
}

// monitor is one for v that takes every command. It returns their names.
func monitor(t *testing.T, v *VM) <-chan string {
	t.Helper()
	ours, theirs, err := socketPair("qmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	names := make(chan string, 64)
	go func() {
		for commands := json.NewDecoder(theirs); ; {
			var c struct {
				Execute string `json:"execute"`
				ID      uint64 `json:"id"`
			}
			if commands.Decode(&c) != nil {
				return
			}
			names <- c.Execute
			fmt.Fprintf(theirs, "{\"return\": {}, \"id\": %d}\n", c.ID)
		}
	}()
	v.qmp = newQMP(ours, v.event)
	return names
}

// TestShareThrownOut: a guest can throw out the shared directory that was plugged in; what comes later finds a place all the same.
func TestShareThrownOut(t *testing.T) {
	v := &VM{}
	asked := monitor(t, v)
	p, err := v.plug.reserve(shareKind, "kataShared")
	if err != nil {
		t.Fatal(err)
	}
	v.event("DEVICE_DELETED", []byte(`{"device": "`+p.device+`"}`))
	if err := v.reap(testContext(t)); err != nil {
		t.Error(err)
	}
	if got := <-asked; got != "chardev-remove" {
		t.Errorf("the monitor was asked for %s", got)
	}
	if v.plug.find(shareKind, "kataShared") != nil {
		t.Error("its place is taken")
	}
}

// TestWhoseFault: a state that cannot be read is the template's fault; a host that is too slow, or a pod that nobody wants any more, is not.
func TestWhoseFault(t *testing.T) {
	v := &VM{moves: make(chan string, 1), exited: make(chan struct{})}
	monitor(t, v)
	from := &template{state: holes(t, memoryPage), memory: holes(t, memoryPage)}
	restore := func(ctx context.Context) (templates bool, err error) {
		copied := &memoryCopy{done: make(chan error, 1)}
		copied.done <- nil
		err = v.restore(ctx, &vmm.Config{}, from, copied)
		return errors.As(err, new(*TemplateError)), err
	}
	busy, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if templates, err := restore(busy); !errors.Is(err, context.DeadlineExceeded) || templates {
		t.Errorf("no time: %v; the template's fault: %v", err, templates)
	}
	v.event("MIGRATION", []byte(`{"status": "failed"}`))
	if templates, err := restore(testContext(t)); err == nil || !templates {
		t.Errorf("a state that cannot be read: %v; the template's fault: %v", err, templates)
	}
}
