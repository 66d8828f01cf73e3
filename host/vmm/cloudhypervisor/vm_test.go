package cloudhypervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/cloudhypervisor/chtest"
)

func TestMain(m *testing.M) {
	chtest.Main()
	os.Exit(m.Run())
}

func testConfig(t *testing.T, behaviour ...string) vmm.Config {
	t.Helper()
	base := t.TempDir()
	kernel := filepath.Join(base, "kernel")
	for name, text := range map[string]string{kernel: "kernel", filepath.Join(base, "behaviour"): strings.Join(behaviour, "\n")} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return vmm.Config{
		Name: "test", Dir: filepath.Join(base, "vm"), ConsoleLog: filepath.Join(base, "console.log"), Program: program,
		Kernel: kernel, Cmdline: "console=ttyS0", VCPUs: 1, MemoryMiB: 256, Accel: vmm.AccelKVM,
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// start starts a VM whose end the test does not have to care about.
func start(t *testing.T, cfg vmm.Config) *VM {
	t.Helper()
	v, err := Start(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		_ = v.Stop(now)
	})
	return v
}

// requests returns the bodies of the requests with this name.
func requests(t *testing.T, cfg vmm.Config, name string) []chtest.Request {
	t.Helper()
	all, err := chtest.Requests(filepath.Dir(cfg.Dir))
	if err != nil {
		t.Fatal(err)
	}
	var found []chtest.Request
	for _, r := range all {
		if r.Name == name {
			found = append(found, r)
		}
	}
	return found
}

func TestLife(t *testing.T) {
	cfg, ctx := testConfig(t), testContext(t)
	var told []int
	cfg.Started = func(pid int) error { told = append(told, pid); return nil }
	v := start(t, cfg)
	pid := v.PID()
	if len(told) != 1 || told[0] != pid {
		t.Errorf("Started was called with %v, the monitor is %d", told, pid)
	}
	conn, err := v.Dial(ctx, 1024)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(" and back")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("hello and back"))
	if _, err := readFull(conn, got); err != nil || string(got) != "hello and back" {
		t.Errorf("got %q, %v", got, err)
	}
	conn.Close()
	if err := v.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if v.Err() != nil {
		t.Errorf("a requested end is reported as %v", v.Err())
	}
	if got := v.ConsoleTail(5); len(got) != 1 || got[0] != "console of serial" {
		t.Errorf("console: %q", got)
	}
	gone(t, cfg, pid)
	if _, err := v.Dial(ctx, 1024); err == nil {
		t.Error("an ended VM can be dialled")
	}
}

func readFull(r interface{ Read([]byte) (int, error) }, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// gone checks that nothing is left of a VM.
func gone(t *testing.T, cfg vmm.Config, pid int) {
	t.Helper()
	if pid != 0 {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("the monitor (process %d) is still there: %v", pid, err)
		}
	}
	if _, err := os.Stat(cfg.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory is still there: %v", err)
	}
}

func TestConfiguration(t *testing.T) {
	cfg := testConfig(t)
	cfg.Cmdline = "quiet console=hvc0"
	cfg.MaxVCPUs, cfg.MaxMemoryMiB = 4, 1024
	cfg.InitdataImage = bytes.Repeat([]byte("initdata"), 64)
	cfg.ExtraDisks = []vmm.Disk{{Path: cfg.Kernel, Serial: "data", Discard: true}}
	cfg.Share = &vmm.Share{Tag: "share", Socket: "/run/share"}
	cfg.Balloon = true
	tap, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	defer other.Close()
	cfg.NICs = []vmm.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", Taps: []*os.File{tap, other}, MTU: 1400}}
	start(t, cfg)
	sent := requests(t, cfg, "vm.create")
	if len(sent) != 1 {
		t.Fatalf("%d vm.create", len(sent))
	}
	want := `{"cpus":{"boot_vcpus":1,"max_vcpus":4},"memory":{"size":268435456,"hotplug_size":805306368,"shared":true},` +
		`"payload":{"kernel":"KERNEL","cmdline":"quiet console=hvc0"},` +
		`"disks":[{"id":"disk-initdata","path":"DIR/initdata.img","readonly":true,"serial":"initdata","sparse":false,"image_type":"Raw"},` +
		`{"id":"disk-data","path":"KERNEL","readonly":false,"serial":"data","sparse":true,"image_type":"Raw"}],` +
		`"fs":[{"tag":"share","socket":"/run/share","num_queues":1,"queue_size":1024}],"rng":{"src":"/dev/urandom"},` +
		`"balloon":{"size":0,"deflate_on_oom":true,"free_page_reporting":true},"vsock":{"cid":3,"socket":"DIR/vsock"},` +
		`"serial":{"mode":"Off"},"console":{"mode":"File","file":"/dev/fd/5"},"platform":{}}`
	want = strings.NewReplacer("KERNEL", cfg.Kernel, "DIR", cfg.Dir).Replace(want)
	if got := string(sent[0].Body); got != want {
		t.Errorf("vm.create:\n%s\nexpected\n%s", got, want)
	}
	nics := requests(t, cfg, "vm.add-net")
	if len(nics) != 1 || len(nics[0].Files) != 2 || !strings.HasPrefix(nics[0].Files[0], "pipe:") {
		t.Fatalf("network cards: %+v", nics)
	}
	if got := string(nics[0].Body); got != `{"id":"net-eth0","mac":"02:00:00:00:00:01","mtu":1400,"num_queues":4}` {
		t.Errorf("vm.add-net: %s", got)
	}
}

func TestTDX(t *testing.T) {
	cfg := testConfig(t)
	cfg.FirmwareCode = cfg.Kernel
	cfg.TEE = &vmm.TEE{Kind: "tdx", InitdataDigest: bytes.Repeat([]byte{0xab}, 32)}
	v := start(t, cfg)
	var sent struct {
		Payload  payloadConfig  `json:"payload"`
		Platform platformConfig `json:"platform"`
	}
	if err := json.Unmarshal(requests(t, cfg, "vm.create")[0].Body, &sent); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("q6ur", 10) + "q6sAAAAAAAAAAAAAAAAAAAAA"; sent.Payload.MRConfigID != want || !sent.Platform.TDX || sent.Payload.Firmware == "" {
		t.Errorf("sent %+v, expected MRCONFIGID %s", sent, want)
	}
	if _, err := v.AddDisk(testContext(t), vmm.Disk{Path: cfg.Kernel, Serial: "x"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("hot plug into a confidential VM: %v", err)
	}
	for behaviour, want := range map[string]string{chtest.NoTDX: "built without TDX", chtest.IgnoresMembers: "ignores TDX"} {
		other := testConfig(t, behaviour)
		other.FirmwareCode, other.TEE = cfg.FirmwareCode, cfg.TEE
		if _, err := Start(testContext(t), other); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", behaviour, err)
		}
		gone(t, other, 0)
	}
}

func TestRefused(t *testing.T) {
	tests := []struct {
		name string
		edit func(*vmm.Config)
		want string
	}{
		{"emulation", func(c *vmm.Config) { c.Accel = vmm.AccelTCG }, "accelerator"},
		{"TPM", func(c *vmm.Config) { c.FirmwareCode, c.FirmwareVars, c.TPM = "/f", "/v", &vmm.TPM{CADir: "/ca"} }, "software TPM"},
		{"user network", func(c *vmm.Config) { c.UserNetwork = true }, "user-mode network"},
		{"firmware", func(c *vmm.Config) { c.FirmwareCode, c.FirmwareVars = "/f", "/v" }, "firmware"},
		{"SNP", func(c *vmm.Config) { c.TEE = &vmm.TEE{Kind: "snp"} }, "only tdx"},
		{"no tap", func(c *vmm.Config) { c.NICs = []vmm.NIC{{ID: "eth0"}} }, "without a tap"},
	}
	for _, tt := range tests {
		cfg := testConfig(t)
		tt.edit(&cfg)
		_, err := Start(testContext(t), cfg)
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestStartFailures(t *testing.T) {
	tests := []struct {
		name, behaviour string
		edit            func(*vmm.Config)
		want            string
	}{
		{"missing kernel", "", func(c *vmm.Config) { c.Kernel = "/nonexistent/vmlinuz" }, "/nonexistent/vmlinuz"},
		{"missing disk", "", func(c *vmm.Config) { c.ExtraDisks = []vmm.Disk{{Path: "/nonexistent/disk", Serial: "d"}} }, "/nonexistent/disk"},
		{"no such program", "", func(c *vmm.Config) { c.Program = "/nonexistent/ch" }, "/nonexistent/ch"},
		{"no such namespace", "", func(c *vmm.Config) { c.NetNS = "/nonexistent/ns" }, "/nonexistent/ns"},
		{"refused by the hook", "", func(c *vmm.Config) { c.Started = func(int) error { return errors.New("no room") } }, "no room"},
		{"long path", "", func(c *vmm.Config) { c.Dir += strings.Repeat("x", 100) }, "too long for a unix socket"},
		{"early exit", chtest.EarlyExit, nil, "no such device"},
		{"exit at boot", chtest.ExitAtBoot, nil, "exit status 101"},
		{"endless header", chtest.FloodHeader, nil, "reading the answer"},
		{"endless body", chtest.FloodBody, nil, "reading the answer"},
		{"old version", chtest.OldVersion, nil, "v51.0 or later"},
		{"boot fails", chtest.BootFails, nil, "500 Internal Server Error: Error from API: Error booting VM: Cannot open kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t, tt.behaviour)
			if tt.edit != nil {
				tt.edit(&cfg)
			}
			v, err := Start(testContext(t), cfg)
			if err == nil {
				v.monitor.Kill()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("error %q does not name %q", err, tt.want)
			}
			gone(t, cfg, 0)
		})
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	for _, behaviour := range []string{chtest.Hang, chtest.HangAtBoot} {
		cfg := testConfig(t, behaviour)
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		if _, err := Start(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", behaviour, err)
		}
		gone(t, cfg, 0)
	}
}
