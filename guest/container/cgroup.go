package container

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// Stats reads the container's usage from its control group.
func (c *Container) Stats() (*agent.CgroupStats, error) { return readStats(c.cgroup) }

// readStats reads a version 2 control group. Files of controllers that are off count as zero.
func readStats(dir string) (*agent.CgroupStats, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	cpu, errCPU := keyed(dir, "cpu.stat")
	mem, errMem := keyed(dir, "memory.stat")
	events, errEv := keyed(dir, "memory.events")
	if err := errors.Join(errCPU, errMem, errEv); err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	mem["oom_kill"] = events["oom_kill"] // a count, for which the protocol has no field
	const perMicro = 1000
	swapUsage := number(dir, "memory.swap.current")
	st := &agent.CgroupStats{
		CpuStats: &agent.CpuStats{
			CpuUsage: &agent.CpuUsage{
				TotalUsage:        cpu["usage_usec"] * perMicro,
				UsageInUsermode:   cpu["user_usec"] * perMicro,
				UsageInKernelmode: cpu["system_usec"] * perMicro,
			},
			ThrottlingData: &agent.ThrottlingData{
				Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledTime: cpu["throttled_usec"] * perMicro,
			},
		},
		MemoryStats: &agent.MemoryStats{
			Cache: mem["file"],
			Usage: &agent.MemoryData{
				Usage: number(dir, "memory.current"), MaxUsage: number(dir, "memory.peak"), Failcnt: events["max"], Limit: memoryLimit(dir, "memory.max"),
			},
			SwapUsage: &agent.MemoryData{
				Usage: swapUsage, MaxUsage: number(dir, "memory.swap.peak"), Limit: memoryLimit(dir, "memory.swap.max"),
			},
			KernelUsage:  &agent.MemoryData{Usage: mem["kernel"]},
			UseHierarchy: true,
			Stats:        mem,
		},
		PidsStats: &agent.PidsStats{Current: number(dir, "pids.current"), Limit: number(dir, "pids.max")},
	}
	blkio, err := blkioStats(dir)
	if err != nil {
		return nil, err
	}
	st.BlkioStats = blkio
	st.HugetlbStats, err = hugetlbStats(dir)
	return st, err
}

// keyed reads a file of "key value" lines.
func keyed(dir, name string) (map[string]uint64, error) {
	out := map[string]uint64{}
	text, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64); err == nil {
			out[key] = n
		}
	}
	return out, nil
}

// memoryLimit reads a limit in bytes. Who computes what is still available takes the greatest number for no limit, zero for nothing.
func memoryLimit(dir, name string) uint64 {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err == nil && strings.TrimSpace(string(text)) == "max" {
		return math.MaxUint64
	}
	return number(dir, name)
}

// number reads a file of one number; "max" and a missing file are zero, which means no limit.
func number(dir, name string) uint64 {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// blkioStats reads io.stat: "major:minor rbytes=1 wbytes=2 rios=3 ...".
func blkioStats(dir string) (*agent.BlkioStats, error) {
	out := &agent.BlkioStats{}
	text, err := os.ReadFile(filepath.Join(dir, "io.stat"))
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		majorText, minorText, _ := strings.Cut(fields[0], ":")
		major, err1 := strconv.ParseUint(majorText, 10, 64)
		minor, err2 := strconv.ParseUint(minorText, 10, 64)
		if err1 != nil || err2 != nil {
			continue
		}
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, "=")
			n, err := strconv.ParseUint(value, 10, 64)
			if err != nil {
				continue
			}
			entry := func(op string) *agent.BlkioStatsEntry {
				return &agent.BlkioStatsEntry{Major: major, Minor: minor, Op: op, Value: n}
			}
			switch key {
			case "rbytes":
				out.IoServiceBytesRecursive = append(out.IoServiceBytesRecursive, entry("read"))
			case "wbytes":
				out.IoServiceBytesRecursive = append(out.IoServiceBytesRecursive, entry("write"))
			case "rios":
				out.IoServicedRecursive = append(out.IoServicedRecursive, entry("read"))
			case "wios":
				out.IoServicedRecursive = append(out.IoServicedRecursive, entry("write"))
			}
		}
	}
	return out, nil
}

func hugetlbStats(dir string) (map[string]*agent.HugetlbStats, error) {
	files, err := filepath.Glob(filepath.Join(dir, "hugetlb.*.current"))
	if err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	out := map[string]*agent.HugetlbStats{}
	for _, f := range files {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "hugetlb."), ".current")
		events, err := keyed(dir, "hugetlb."+size+".events")
		if err != nil {
			return nil, fmt.Errorf("reading usage: %w", err)
		}
		out[size] = &agent.HugetlbStats{Usage: number(dir, filepath.Base(f)), Failcnt: events["max"]}
	}
	return out, nil
}

// watchOOM calls onOOM for each kill in the control group until stop is called or the group goes away.
func watchOOM(cgroup string, onOOM func()) (stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching memory events: %w", err)
	}
	watch := os.NewFile(uintptr(fd), "memory.events")
	file := filepath.Join(cgroup, "memory.events")
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
		watch.Close()
		return nil, fmt.Errorf("watching %s: %w", file, err)
	}
	go func() {
		defer watch.Close()
		var seen uint64
		report := func() {
			events, err := keyed(cgroup, "memory.events")
			if err != nil {
				return
			}
			if n := events["oom_kill"]; n > seen {
				seen = n
				onOOM()
			}
		}
		buf := make([]byte, 4096)
		for {
			report()
			if _, err := watch.Read(buf); err != nil {
				report()
				return
			}
		}
	}()
	// The kill that ends the container is reported after its end has been seen, so the watch goes on for a moment.
	return func() { _ = watch.SetReadDeadline(time.Now().Add(drainTime)) }, nil
}

// applyNetSysctl sets network parameters below root, which is /proc/sys.
func applyNetSysctl(root string, settings map[string]string) error {
	if len(settings) == 0 {
		return nil
	}
	dir, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("setting network parameters: %w", err)
	}
	defer dir.Close()
	for key, value := range settings {
		if err := setSysctl(dir, key, value); err != nil {
			return fmt.Errorf("setting %s: %w", key, err)
		}
	}
	return nil
}

func setSysctl(dir *os.Root, key, value string) error {
	f, err := dir.OpenFile(strings.ReplaceAll(key, ".", "/"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
