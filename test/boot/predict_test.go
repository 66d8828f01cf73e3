package boot

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/author/refvalue"
	"github.com/cloister/cloister/internal/needs"
)

// fetchLimit bounds what has to be downloaded and built before a boot.
const fetchLimit = 10 * time.Minute

// kernels gets two kernels of different series: the locked one, and the one of
// the stable release.
func kernels(t *testing.T) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fetchLimit)
	defer cancel()
	cacheDir, err := os.UserCacheDir()
	if err != nil {
		cacheDir = t.TempDir()
	}
	o := guestimage.Options{CacheDir: filepath.Join(cacheDir, "cloister", "test-kernels")}
	lock, err := guestimage.LoadLock("../../guest.lock")
	if err != nil {
		t.Fatal(err)
	}
	new612 := lock.Kernel
	stable := o
	stable.Suites = []string{"bookworm"}
	old61, err := guestimage.NewestKernel(ctx, stable, "6.1")
	if err != nil {
		needs.Missing(t, "a Debian mirror to take kernels from: %v", err)
	}
	var files []string
	for _, k := range []guestimage.KernelLock{new612, old61} {
		f, err := guestimage.FetchKernel(ctx, o, k)
		if err != nil {
			needs.Missing(t, "a Debian mirror that offers %s: %v", k.Package, err)
		}
		files = append(files, f)
	}
	return files
}

// probeInitrd packs the probe as the only program; salt makes initrds differ.
func probeInitrd(t *testing.T, salt string) string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "probe")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the probe: %v\n%s", err, out)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := cpio.Newc.Writer(&buf)
	if err := cpio.WriteRecords(w, []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.Directory("proc", 0o755), cpio.Directory("sys", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("init", string(data), 0o755), cpio.StaticFile("salt", salt, 0o644),
	}); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "initrd.img")
	if err := os.WriteFile(out, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPredictionMatchesBoot boots two kernels with two command lines on
// different machines, and compares every predicted register.
func TestPredictionMatchesBoot(t *testing.T) {
	needTools(t)
	files := kernels(t)
	base := "console=ttyS0 quiet panic=-1 no_timer_check cloister.initdata=none"
	for i, v := range []vm{
		{Kernel: files[0], Cmdline: base, VCPUs: 1, MemoryMiB: 512},
		{Kernel: files[0], Cmdline: base + " cloister.test=second  with=spaces", VCPUs: 2, MemoryMiB: 1024},
		{Kernel: files[1], Cmdline: base, VCPUs: 2, MemoryMiB: 768, S3: true},
		{Kernel: files[1], Cmdline: base + " cloister.test=second", VCPUs: 4, MemoryMiB: 3072},
	} {
		t.Run(fmt.Sprintf("%d", i), func(t *testing.T) {
			v.Initrd = probeInitrd(t, fmt.Sprint(i))
			want, err := refvalue.Compute(refvalue.Input{
				Kernel: v.Kernel, Initrd: v.Initrd, Cmdline: v.Cmdline, FirmwareCode: ovmfCode, FirmwareVars: ovmfVars,
				Machines: []refvalue.Machine{{VCPUs: v.VCPUs, MemoryMiB: v.MemoryMiB, S3: v.S3}},
			})
			if err != nil {
				t.Fatal(err)
			}
			got := boot(t, v)
			t.Logf("%d vCPU, %d MiB: first line of init after %v", v.VCPUs, v.MemoryMiB, got.Took.Round(10*time.Millisecond))
			matched := false
			for _, b := range want.Boots {
				ok := true
				for pcr, value := range b.PCRs {
					ok = ok && got.PCRs[pcr] == value
				}
				matched = matched || ok
			}
			if !matched {
				for _, b := range want.Boots {
					for pcr, value := range b.PCRs {
						if got.PCRs[pcr] != value {
							t.Errorf("%s: PCR %d is %s, predicted %s", b.Loader, pcr, got.PCRs[pcr], value)
						}
					}
				}
			}
		})
	}
}
