package hotplug

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/host/layerdisk"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/host/vmm/vmmtest"
	"github.com/cloister/cloister/test/vmtest"
)

// limit is far more than a test takes, on a busy machine too.
const limit = 10 * time.Minute

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// probeImage is a guest image with the probe in the place of the guest's program.
func probeImage(t testing.TB) *guestimage.Result {
	t.Helper()
	vmtest.Need(t)
	bin := filepath.Join(t.TempDir(), "probe")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the probe: %v\n%s", err, out)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = t.TempDir()
	}
	r, err := guestimage.Build(testContext(t), guestimage.Options{
		CacheDir: filepath.Join(cache, "cloister", "test-kernels"), LockPath: "../../guest.lock", GuestBinary: bin,
	})
	if err != nil {
		t.Fatalf("building the image: %v", err)
	}
	return r
}

// config is the VM of sandboxed mode with the probe in it.
func config(t testing.TB, image *guestimage.Result, word string) vmm.Config {
	t.Helper()
	base, err := os.MkdirTemp("/tmp", "hp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	return vmm.Config{
		Name: "probe", Dir: filepath.Join(base, "vm"), ConsoleLog: filepath.Join(base, "console.log"),
		Kernel: filepath.Join(image.Dir, image.Manifest.Kernel.Path), Initrd: filepath.Join(image.Dir, image.Manifest.Initrd.Path),
		Cmdline: "console=ttyS0 quiet panic=-1 probe=" + word,
		VCPUs:   1, MemoryMiB: 256, Accel: vmm.AccelTCG,
	}
}

func start(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) { return qemu.Start(ctx, cfg) }

func TestGuestConformance(t *testing.T) {
	image := probeImage(t)
	vmmtest.RunGuest(t, vmmtest.Guest{
		Monitor:     vmmtest.Monitor{Start: start},
		GuestConfig: func(t *testing.T, word string) vmm.Config { return config(t, image, word) },
	})
}

// guest is a VM with a line to its probe.
type guest struct {
	*qemu.VM
	t     testing.TB
	conn  net.Conn
	lines *bufio.Reader
}

type state struct {
	Disks []struct{ Name, Serial, PCI, Content string }
	Cards []struct {
		Name, MAC, PCI string
		MTU, Queues    int
	}
	CPUs, MiB int
}

func boot(t testing.TB, cfg vmm.Config) *guest {
	t.Helper()
	ctx := testContext(t)
	vm, err := qemu.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		if err := vm.Stop(now); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("console:\n%s", strings.Join(vm.ConsoleTail(60), "\n"))
		}
	})
	conn, err := vm.Dial(ctx, 1024)
	if err != nil {
		t.Fatal(err)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	return &guest{vm, t, conn, bufio.NewReader(conn)}
}

// ask sends a line and reads the state that answers it.
func (g *guest) ask(format string, args ...any) state {
	g.t.Helper()
	line := fmt.Sprintf(format, args...)
	answer := g.line(line)
	var s state
	if err := json.Unmarshal([]byte(answer), &s); err != nil {
		g.t.Fatalf("asking %q: %v (%.300s)", line, err, answer)
	}
	return s
}

// line sends a line and reads the one that answers it.
func (g *guest) line(line string) string {
	g.t.Helper()
	if _, err := io.WriteString(g.conn, line+"\n"); err != nil {
		g.t.Fatalf("asking %q: %v", line, err)
	}
	answer, err := g.lines.ReadString('\n')
	if err != nil {
		g.t.Fatalf("asking %q: %v (%.300s)", line, err, answer)
	}
	return strings.TrimSpace(answer)
}

func TestHotPlug(t *testing.T) {
	image := probeImage(t)
	for name, edit := range map[string]func(*vmm.Config){
		"small firmware": func(*vmm.Config) {},
		"OVMF": func(c *vmm.Config) {
			c.FirmwareCode, c.FirmwareVars = image.Manifest.Firmware.CodePath, image.Manifest.Firmware.VarsPath
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, image, "serve")
			cfg.MaxVCPUs, cfg.MaxMemoryMiB, cfg.Balloon = 3, 1024, true
			cfg.ExtraDisks = []vmm.Disk{{Path: diskImage(t, "first"), Serial: "cold"}}
			cfg.NICs = []vmm.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", Taps: vmmtest.Taps(t, "hp0", 1)}}
			edit(&cfg)
			g := boot(t, cfg)
			ctx := testContext(t)
			if s := g.ask("wait disk cold"); len(s.Cards) != 1 || s.CPUs != 1 || s.MiB != 256 {
				t.Errorf("at the start: %+v", s)
			}
			g.disks(ctx)
			g.cards(ctx)
			for _, size := range [][2]int{{2, 512}, {3, 1024}} {
				cpus, mib, err := g.Resize(ctx, size[0], size[1])
				if err != nil || cpus != size[0] || mib != size[1] {
					t.Fatalf("resizing gave %d processors, %d MiB, %v", cpus, mib, err)
				}
				// Linux keeps no place for processors here, so that only QEMU's side of them is seen: TestProcessors has more.
				g.ask("size 1 %d", mib)
			}
		})
	}
}

// TestLateDisks adds disks that can only be read, and one that the guest would encrypt, to a VM whose start is measured, and which gets no
// other device.
func TestLateDisks(t *testing.T) {
	image := probeImage(t)
	cfg := config(t, image, "serve")
	cfg.FirmwareCode, cfg.FirmwareVars, cfg.LateDisks = image.Manifest.Firmware.CodePath, image.Manifest.Firmware.VarsPath, true
	g := boot(t, cfg)
	ctx := testContext(t)
	g.ask("size 1 256")
	path := diskImage(t, "first")
	for serial, d := range map[string]vmm.Disk{
		"plain":  {Path: path, ReadOnly: true},
		"parts":  {Path: partitioned(t, path), ReadOnly: true, Format: vmm.FormatVMDK},
		"sealed": {Path: diskImage(t, "first"), Sealed: true},
	} {
		d.Serial = serial
		place, err := g.AddDisk(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range g.ask("wait disk %s", serial).Disks {
			// A partition table begins with an empty sector.
			found = found || f.Serial == serial && f.PCI == place.Address && strings.HasPrefix("this is first", f.Content)
		}
		if !found {
			t.Errorf("disk %s is not at %+v", serial, place)
		}
	}
	for _, serial := range []string{"plain", "parts", "sealed"} {
		if err := g.RemoveDisk(ctx, serial); err != nil {
			t.Error(err)
		}
		g.ask("gone disk %s", serial)
	}
	if _, err := g.AddDisk(ctx, vmm.Disk{Path: path, Serial: "written"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a disk that the guest can write: %v", err)
	}
	if _, _, err := g.Resize(ctx, 2, 512); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("resizing: %v", err)
	}
}

// partitioned is a disk with the image as its partition.
func partitioned(t *testing.T, path string) string {
	t.Helper()
	descriptor, err := layerdisk.Write(filepath.Join(t.TempDir(), "disk"), []layerdisk.Layer{{Path: path, Size: 1 << 20, Name: "first"}})
	if err != nil {
		t.Fatal(err)
	}
	return descriptor
}

// disks adds disks, finds them at their places with their content, removes one and gives its place to another.
func (g *guest) disks(ctx context.Context) {
	t := g.t
	add := func(serial string, d vmm.Disk) vmm.Place {
		t.Helper()
		d.Serial = serial
		place, err := g.AddDisk(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		disks := g.ask("wait disk %s", serial).Disks
		for _, found := range disks {
			if found.Serial == serial && found.PCI == place.Address && found.Content == "this is "+serial {
				return place
			}
		}
		t.Fatalf("disk %s is not at %+v: %+v", serial, place, disks)
		return place
	}
	one := add("one", vmm.Disk{Path: diskImage(t, "one"), Discard: true})
	add("two", vmm.Disk{Path: diskImage(t, "two"), ReadOnly: true})
	if err := g.RemoveDisk(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	g.ask("gone disk one")
	if three := add("three", vmm.Disk{Path: diskImage(t, "three")}); three != one {
		t.Errorf("disk three is at %+v, the free place is %+v", three, one)
	}
	if device := loopDevice(t, diskImage(t, "device")); device != "" {
		add("device", vmm.Disk{Path: device})
		if err := g.RemoveDisk(ctx, "device"); err != nil {
			t.Error(err)
		}
	}
}

func (g *guest) cards(ctx context.Context) {
	t := g.t
	for _, queues := range []int{1, 2} {
		n := vmm.NIC{ID: fmt.Sprint("hot", queues), MAC: fmt.Sprintf("02:00:00:00:02:%02x", queues), Taps: vmmtest.Taps(t, fmt.Sprint("hp", queues), queues), MTU: 1450}
		place, err := g.AddNIC(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, c := range g.ask("wait card %s", n.MAC).Cards {
			found = found || c.MAC == n.MAC && c.PCI == place.Address && c.MTU == 1450
		}
		if !found {
			t.Errorf("card %s is not at %+v", n.ID, place)
		}
		if err := g.RemoveNIC(ctx, n.ID); err != nil {
			t.Fatal(err)
		}
		g.ask("gone card %s", n.MAC)
	}
}

// diskImage makes a disk image that says its name.
func diskImage(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".img")
	if err := os.WriteFile(path, append([]byte("this is "+name), make([]byte, 1<<20)...)[:1<<20], 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// loopDevice makes a block device of an image, or returns "" where that is not possible.
func loopDevice(t testing.TB, path string) string {
	out, err := exec.Command("losetup", "--find", "--show", path).Output()
	if err != nil {
		t.Logf("no loop device: %v", err)
		return ""
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", device).Run(); err != nil {
			t.Errorf("detaching %s: %v", device, err)
		}
	})
	return device
}
