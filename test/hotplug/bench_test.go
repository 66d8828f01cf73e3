package hotplug

import (
	"bufio"
	"context"
	"io"
	"os"
	"testing"
	"time"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/internal/needs"
)

// BenchmarkFirstAnswer is the time from starting a VM to the first answer of its guest, by machine and firmware.
// Run with -benchtime 3x: each boot takes seconds.
func BenchmarkFirstAnswer(b *testing.B) {
	image := probeImage(b)
	small, err := os.Stat("/usr/share/qemu/qboot.rom")
	if err != nil || small.Size() == 0 {
		needs.Missing(b, "qboot (package qemu-system-data)")
	}
	for _, v := range []struct {
		name string
		edit func(*vmm.Config)
	}{
		{"q35-small", func(*vmm.Config) {}},
		{"q35-OVMF", func(c *vmm.Config) {
			c.FirmwareCode, c.FirmwareVars = image.Manifest.Firmware.CodePath, image.Manifest.Firmware.VarsPath
		}},
	} {
		b.Run(v.name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				cfg := config(b, image, "serve")
				v.edit(&cfg)
				b.StartTimer()
				firstAnswer(b, cfg)
			}
		})
	}
}

func firstAnswer(b *testing.B, cfg vmm.Config) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	vm, err := qemu.Start(ctx, cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		b.StopTimer()
		now, cancel := context.WithCancel(context.Background())
		cancel()
		_ = vm.Stop(now)
		b.StartTimer()
	}()
	conn, err := vm.Dial(ctx, 1024)
	if err != nil {
		b.Fatal(err)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		b.Fatal(err)
	}
	if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
		b.Fatalf("%v; console: %q", err, vm.ConsoleTail(5))
	}
}
