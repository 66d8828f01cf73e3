// Command probe is an init for tests of virtual machine monitors. Its word on the kernel command line says how it behaves: probe=serve,
// fatal or flood, as package vmmtest asks of a guest.
//
// On port 1024 each line gets a line: "state" what there is of devices, as JSON; "wait KIND KEY" the same once a disk with this serial, or
// a card with this address, is there ("gone KIND KEY": is not); "size N M" once there are N processors online and M MiB of memory; "table
// NAME" the bytes of an ACPI table in hexadecimal; and any other line itself.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/kmod"
	"github.com/cloister/cloister/guest/mux"
)

func main() {
	if err := run(); err != nil {
		fmt.Printf("cloister-guest: fatal: %v\n", err)
	}
	powerOff()
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// Without a way to power off: the monitor takes a restart as the end, too.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func run() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", m.kind, err)
		}
	}
	loadModules()
	up, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	fmt.Printf("probe: up %s", up)
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(string(cmdline)) {
		switch word {
		case "probe=fatal":
			return fmt.Errorf("the probe was told to")
		case "probe=flood":
			go flood()
		}
	}
	return serve()
}

// drivers are those of devices that come and go: a guest loads them when it sees the first.
var drivers = []string{"virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon"}

// loadModules loads the image's list, then the drivers. What has no hardware here says so, and is not needed.
func loadModules() {
	defer loadDrivers()
	list, err := os.ReadFile("/etc/cloister/modules")
	if err != nil {
		return
	}
	for _, path := range strings.Fields(string(list)) {
		f, err := os.Open(path)
		if err != nil {
			fmt.Printf("probe: %v\n", err)
			continue
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
			fmt.Printf("probe: %s: %v\n", path, err)
		}
		f.Close()
	}
}

func loadDrivers() {
	release, err := kmod.Release()
	if err == nil {
		var modules *kmod.Loader
		if modules, err = kmod.Open("/lib/modules/"+release, slog.New(slog.DiscardHandler)); err == nil {
			err = modules.Load(drivers...)
		}
	}
	if err != nil {
		fmt.Printf("probe: %v\n", err)
	}
}

func flood() {
	line := strings.Repeat("flood ", 600) // no line break: lines have to be bounded, too
	for {
		if _, err := io.WriteString(os.Stdout, line); err != nil {
			return
		}
	}
}

func serve() error {
	ctx := context.Background()
	var path string
	// The host's description of its ports comes a moment after the device.
	err := onEvents(func() (ok bool) {
		var err error
		path, err = mux.FindVirtioPort("/sys", "/dev", mux.PortName)
		return err == nil && path != ""
	})
	if err != nil {
		return fmt.Errorf("looking for the host's port: %w", err)
	}
	port, err := mux.OpenVirtioPort(ctx, path)
	if err != nil {
		return err
	}
	m, err := mux.New(port, slog.New(slog.DiscardHandler), mux.PortAgent)
	if err != nil {
		return err
	}
	go func() {
		l := m.Listener(mux.PortAgent)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answer(conn)
		}
	}()
	return m.Serve(ctx)
}

func answer(conn net.Conn) {
	defer conn.Close()
	s := bufio.NewScanner(conn)
	for s.Scan() {
		if s.Text() == "poweroff" {
			powerOff()
		}
		if _, err := fmt.Fprintln(conn, reply(s.Text())); err != nil {
			return
		}
	}
}
