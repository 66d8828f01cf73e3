package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// state is what the guest has.
type state struct {
	Disks []disk `json:"disks"`
	Cards []card `json:"cards"`
	CPUs  int    `json:"cpus"` // online
	MiB   int    `json:"mib"`
}

type disk struct{ Name, Serial, PCI, Content string }

type card struct {
	Name, MAC, PCI string
	MTU, Queues    int
}

func reply(line string) string {
	words := strings.Fields(line)
	var check func(state) bool
	switch {
	case len(words) == 1 && words[0] == "state":
		check = func(state) bool { return true }
	case len(words) == 3 && (words[0] == "wait" || words[0] == "gone"):
		check = func(s state) bool { return s.has(words[1], words[2]) == (words[0] == "wait") }
	case len(words) == 3 && words[0] == "size":
		cpus, _ := strconv.Atoi(words[1])
		mib, _ := strconv.Atoi(words[2])
		check = func(s state) bool { return s.CPUs >= cpus && s.MiB >= mib }
	case len(words) == 2 && words[0] == "table":
		b, err := os.ReadFile("/sys/firmware/acpi/tables/" + filepath.Base(words[1]))
		if err != nil {
			return "error: " + err.Error()
		}
		return hex.EncodeToString(b)
	default:
		return line
	}
	s, err := waitFor(check)
	if err != nil {
		return "error: " + err.Error()
	}
	b, err := json.Marshal(s)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b)
}

func (s state) has(kind, key string) bool {
	for _, d := range s.Disks {
		if kind == "disk" && d.Serial == key {
			return true
		}
	}
	for _, c := range s.Cards {
		if kind == "card" && c.MAC == key {
			return true
		}
	}
	return false
}

// waitFor looks at the devices until check says so.
func waitFor(check func(state) bool) (s state, err error) {
	err = onEvents(func() bool {
		bringOnline()
		s = look()
		return check(s)
	})
	if err != nil {
		err = fmt.Errorf("%w: %+v", err, s)
	}
	return s, err
}

// wait is longer than any change takes on a busy machine.
const wait = 4 * time.Minute

// onEvents calls done now and after each event of the kernel, until it says so, for some minutes.
func onEvents(done func() bool) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return err
	}
	end := time.Now().Add(wait)
	buf := make([]byte, 8<<10)
	for !done() {
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("not within %s", wait)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		if n > 0 {
			_, _, err = unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		}
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	return nil
}

// bringOnline brings new processors and memory online.
func bringOnline() {
	for _, pattern := range []string{"/sys/devices/system/cpu/cpu*/online", "/sys/devices/system/memory/memory*/online"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			if text(f) == "0" {
				_ = os.WriteFile(f, []byte("1"), 0)
			}
		}
	}
}

func look() state {
	var s state
	blocks, _ := filepath.Glob("/sys/class/block/vd*")
	for _, b := range blocks {
		name := filepath.Base(b)
		d := disk{Name: name, Serial: text(b + "/serial"), PCI: pciPath(b + "/device")}
		f, err := os.Open("/dev/" + name)
		if err != nil {
			continue // sysfs shows a disk a moment before it has a node
		}
		start := make([]byte, 16)
		_, _ = f.Read(start)
		f.Close()
		d.Content = string(bytes.TrimRight(start, "\x00"))
		s.Disks = append(s.Disks, d)
	}
	nets, _ := filepath.Glob("/sys/class/net/*/device")
	for _, n := range nets {
		dir := filepath.Dir(n)
		queues, _ := filepath.Glob(dir + "/queues/rx-*")
		mtu, _ := strconv.Atoi(text(dir + "/mtu"))
		s.Cards = append(s.Cards, card{filepath.Base(dir), text(dir + "/address"), pciPath(n), mtu, len(queues)})
	}
	cpus, _ := filepath.Glob("/sys/bus/cpu/devices/cpu*")
	for _, c := range cpus {
		if o := text(c + "/online"); o != "0" { // the first processor has no such file
			s.CPUs++
		}
	}
	size, _ := strconv.ParseInt(text("/sys/devices/system/memory/block_size_bytes"), 16, 64)
	blocksOfMemory, _ := filepath.Glob("/sys/devices/system/memory/memory*/online")
	for _, m := range blocksOfMemory {
		if text(m) == "1" {
			s.MiB += int(size >> 20)
		}
	}
	return s
}

func text(file string) string {
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b))
}

// pciPath is the slots on the way to a device, as the agent's requests name it: 02/01.
func pciPath(device string) string {
	real, err := filepath.EvalSymlinks(device)
	if err != nil {
		return ""
	}
	var slots []string
	for _, part := range strings.Split(real, "/") {
		// 0000:01:02.0: domain, bus, slot and function
		if len(part) == 12 && part[4] == ':' && part[7] == ':' && part[10] == '.' {
			slots = append(slots, part[8:10])
		}
	}
	return strings.Join(slots, "/")
}
