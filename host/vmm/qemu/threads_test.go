package qemu

import (
	"os"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// TestVCPUThreads asks a real QEMU: with emulation one thread runs all processors.
func TestVCPUThreads(t *testing.T) {
	cfg, ctx := testConfig(t), testContext(t)
	cfg.TPM, cfg.VCPUs, cfg.CPUFeatures = nil, 2, "pmu=off,la57=on"
	vm, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer kill(t, vm)
	threads, err := vm.VCPUThreads(ctx)
	if err != nil || len(threads) != 1 || threads[0] == vm.PID() {
		t.Errorf("threads %v of process %d, %v", threads, vm.PID(), err)
	}
	if lines := vm.Messages(10); len(lines) > 0 {
		t.Logf("QEMU says %q", lines)
	}
	// What emulation needs counts after what was asked for.
	var off bool
	var cpus []struct {
		Path string `json:"qom-path"`
	}
	if err := vm.qmp.run(ctx, "query-cpus-fast", nil, &cpus); err != nil || len(cpus) != 2 {
		t.Fatalf("%v, %v", cpus, err)
	}
	for _, feature := range []string{"la57", "cx16", "pmu"} {
		if err := vm.qmp.run(ctx, "qom-get", map[string]string{"path": cpus[0].Path, "property": feature}, &off); err != nil || off {
			t.Errorf("%s is %v, %v", feature, off, err)
		}
	}
}

func TestHugepagesThatAreNotThere(t *testing.T) {
	if err := checkHugepages("/nonexistent/hugepages", 128); err == nil || !strings.Contains(err.Error(), "hint: mount it") {
		t.Error(err)
	}
	if err := checkHugepages(t.TempDir(), 128); err == nil || !strings.Contains(err.Error(), "another file system") {
		t.Error(err)
	}
	if _, err := os.Stat(hugepages); err == nil {
		needs.Optional(t, "this host has huge pages")
	}
	cfg := testConfig(t)
	cfg.TPM, cfg.Hugepages = nil, true
	if vm, err := Start(testContext(t), cfg); err == nil || !strings.Contains(err.Error(), hugepages) {
		if err == nil {
			kill(t, vm)
		}
		t.Errorf("without huge pages: %v", err)
	}
	if _, err := os.Stat(cfg.Dir); err == nil {
		t.Error("the directory is left")
	}
}
