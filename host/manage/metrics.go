package manage

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/cloister/cloister/wire/agent"
)

// Bounds of what is read for the metrics.
const (
	maxProcFile     = 64 << 10
	maxGuestMetrics = 1 << 20
	maxProcesses    = 64
)

// guestUp is ours and not the guest's.
const guestUp = "cloister_guest_up"

// metrics writes what the host knows, and then what the guest says. A guest that gives nothing leaves the rest as it is.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request) error {
	var b strings.Builder
	writeProcess(&b, "kata_shim", os.Getpid())
	fmt.Fprintf(&b, "# HELP kata_shim_go_goroutines Goroutines of the shim.\n# TYPE kata_shim_go_goroutines gauge\nkata_shim_go_goroutines %d\n",
		runtime.NumGoroutine())
	if s.cfg.Processes != nil {
		seen := map[string]bool{}
		for _, p := range s.cfg.Processes() {
			prefix, ok := prefixOf(p.Role)
			if !ok || seen[prefix] || len(seen) == maxProcesses { // a family is there once
				continue
			}
			seen[prefix] = true
			writeProcess(&b, prefix, p.PID)
		}
	}
	s.cfg.Durations.write(&b)
	text, up := s.guestMetrics(r.Context())
	fmt.Fprintf(&b, "# HELP %s Whether the guest gave its metrics; its policy may forbid it.\n# TYPE %[1]s gauge\n%[1]s %d\n", guestUp, up)
	b.WriteString(text)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, err := io.WriteString(w, b.String())
	return err
}

var role = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// prefixOf begins the names of a process's families. Those of upstream have upstream's names.
func prefixOf(name string) (string, bool) {
	switch {
	case name == "hypervisor" || name == "virtiofsd":
		return "kata_" + name, true
	case role.MatchString(name) && name != "guest":
		return "cloister_" + name, true
	}
	return "", false
}

// statusItems are the lines of /proc/PID/status that are shown; those in kB become bytes.
var statusItems = []struct {
	key, item string
	unit      uint64
}{
	{"VmPeak", "vmpeak", 1 << 10}, {"VmSize", "vmsize", 1 << 10}, {"VmHWM", "vmhwm", 1 << 10}, {"VmRSS", "vmrss", 1 << 10},
	{"RssAnon", "rssanon", 1 << 10}, {"RssFile", "rssfile", 1 << 10}, {"RssShmem", "rssshmem", 1 << 10}, {"VmSwap", "vmswap", 1 << 10},
	{"voluntary_ctxt_switches", "voluntary_ctxt_switches", 1}, {"nonvoluntary_ctxt_switches", "nonvoluntary_ctxt_switches", 1},
}

// writeProcess writes the families of one process; nothing when it is not there any more.
func writeProcess(b *strings.Builder, prefix string, pid int) {
	if pid < 1 {
		return
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	status, err := readProc(filepath.Join(dir, "status"))
	if err != nil {
		return
	}
	values := pairs(status)
	gauge := func(name, help string) {
		fmt.Fprintf(b, "# HELP %s_%s %s\n# TYPE %s_%s gauge\n", prefix, name, help, prefix, name)
	}
	gauge("threads", "Threads of the process.")
	fmt.Fprintf(b, "%s_threads %d\n", prefix, values["Threads"])
	if n, err := countFiles(filepath.Join(dir, "fd")); err == nil {
		gauge("fds", "Open files of the process.")
		fmt.Fprintf(b, "%s_fds %d\n", prefix, n)
	}
	gauge("proc_status", "Figures of /proc/PID/status; memory in bytes.")
	for _, x := range statusItems {
		if v, ok := values[x.key]; ok {
			fmt.Fprintf(b, "%s_proc_status{item=%q} %d\n", prefix, x.item, v*x.unit)
		}
	}
	if text, err := readProc(filepath.Join(dir, "stat")); err == nil {
		// The name of the program may have anything in it; what follows has not.
		if _, rest, ok := cutLast(text, ") "); ok {
			if f := strings.Fields(rest); len(f) > 14 {
				gauge("proc_stat", "Processor time of the process and of children that ended, in ticks of 10 ms.")
				for i, item := range []string{"utime", "stime", "cutime", "cstime"} {
					if v, err := strconv.ParseUint(f[11+i], 10, 64); err == nil {
						fmt.Fprintf(b, "%s_proc_stat{item=%q} %d\n", prefix, item, v)
					}
				}
			}
		}
	}
	if text, err := readProc(filepath.Join(dir, "io")); err == nil {
		gauge("io_stat", "Figures of /proc/PID/io.")
		values := pairs(text)
		for _, key := range []string{"rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes"} {
			if v, ok := values[key]; ok {
				fmt.Fprintf(b, "%s_io_stat{item=%q} %d\n", prefix, strings.ReplaceAll(key, "_", ""), v)
			}
		}
	}
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func readProc(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProcFile))
	return string(b), err
}

// pairs reads lines of "key: number".
func pairs(text string) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if !ok || len(fields) == 0 {
			continue
		}
		if v, err := strconv.ParseUint(fields[0], 10, 64); err == nil {
			out[key] = v
		}
	}
	return out
}

func countFiles(dir string) (int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for n := 0; ; {
		names, err := f.Readdirnames(256)
		n += len(names)
		if err == io.EOF {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}

// guestMetrics asks the guest.
func (s *Server) guestMetrics(ctx context.Context) (text string, up int) {
	a, err := s.agent()
	if err != nil {
		return "", 0
	}
	m, err := a.GetMetrics(ctx, &agent.GetMetricsRequest{})
	if err != nil {
		s.cfg.Logger.Debug("the guest gave no metrics", "error", err)
		return "", 0
	}
	return filterGuest(m.GetMetrics()), 1
}
