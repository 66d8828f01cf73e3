package containerd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// places are where shims keep files outside of containerd's directories.
var places = []string{"/run/cloister", "/run/containerd/runc", "/run/kata-containers", "/run/vc", "/run/netns"}

// snapshot is what there was in places.
type snapshot map[string]bool

func takeSnapshot() snapshot {
	s := snapshot{}
	for _, root := range places {
		_ = filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
			if err == nil {
				s[name] = true
			}
			return nil
		})
	}
	return s
}

// containerID is how CRI's containers and sandboxes are named.
var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// leftovers are what is left of the daemon: nothing should be.
func (d *Daemon) leftovers() []string {
	var found []string
	add := func(kind string, names []string) {
		for _, n := range names {
			found = append(found, kind+" "+n)
		}
	}
	add("process", processes(d.dir))
	add("mount", mounts(d.dir))
	add("interface on the bridge", d.Network.ports())
	add("rule", d.Network.rules())
	add("network namespace", names(d.path("state/io.containerd.grpc.v1.cri/netns")))
	for _, address := range names(d.path("addresses/" + d.Network.Name)) {
		if address[0] >= '0' && address[0] <= '9' {
			add("address", []string{address})
		}
	}
	var files []string
	log := d.Logs()
	for name := range takeSnapshot() {
		if strings.HasPrefix(name, keptTraces+"/") {
			continue
		}
		if id := containerID.FindString(name); !d.before[name] && id != "" && strings.Contains(log, id) { // not of the machine's other users
			files = append(files, name)
		}
	}
	sort.Strings(files)
	add("file", files)
	return found
}

// LeftOf is what there is on the machine of a container, a sandbox or whatever else has this name: processes, mounts, cgroups, and
// files outside of containerd's own root. An empty list means that it is gone.
func (d *Daemon) LeftOf(id string) []string {
	var found []string
	add := func(kind string, names []string) {
		for _, n := range names {
			found = append(found, kind+" "+n)
		}
	}
	add("process", processes(id))
	add("mount", mounts(id))
	add("cgroup", named("/sys/fs/cgroup", id))
	for _, root := range append([]string{d.path("state")}, places...) {
		for _, name := range named(root, id) {
			if !halfRemoved(name) {
				add("file", []string{name})
			}
		}
	}
	return found
}

// bundleFiles are what a bundle has when the runtime has done its part: what containerd wrote, and what shims keep there until containerd
// removes it with the bundle, as each shim's library does (runc's and ours).
var bundleFiles = map[string]bool{
	"config.json": true, "options.json": true, "shim-binary-path": true, "bootstrap.json": true, "sandbox": true, "log": true, "work": true, // containerd's
	"address": true, "shim.pid": true, "init.pid": true, "log.json": true, "runtime": true, "exit.json": true, // shims'
}

// halfRemoved says that a path is a bundle that containerd itself was removing when it was killed, and that the runtime has left nothing
// in it. The last step of a bundle's life, after the shim's delete and the unmounting of the root file system, is that containerd renames
// the bundle ID to .ID and removes it file by file. When it starts again it skips the hidden directories of bundles, in all versions from
// 1.6 to 2.4 (loadShims in core/runtime/v2), so that whatever it had not removed yet stays until somebody empties the state directory, at
// the latest the next boot. No runtime can do anything about it: its delete came before the new name. A mount in it, a root file system,
// or a file that is no part of a bundle is another matter: that the runtime should have taken away, and it counts.
func halfRemoved(name string) bool {
	if !strings.HasPrefix(filepath.Base(name), ".") || filepath.Base(filepath.Dir(filepath.Dir(name))) != "io.containerd.runtime.v2.task" {
		return false
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) // it is gone by now
	}
	for _, e := range entries {
		if e.IsDir() || !bundleFiles[e.Name()] {
			return false
		}
	}
	return len(mounts(name)) == 0
}

// Sockets are the sockets that a shim of the sandbox made and left, by containerd's rule for their names.
func (d *Daemon) Sockets(id string) []string {
	sum := sha256.Sum256([]byte(filepath.Join(d.Address, Namespace, id)))
	return named("/run/containerd/s", hex.EncodeToString(sum[:]))
}

// Gone waits until nothing is left of the names and fails the test when something still is at the end of the time.
func (d *Daemon) Gone(t testing.TB, timeout time.Duration, ids ...string) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		var left []string
		for _, id := range ids {
			left = append(left, d.LeftOf(id)...)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("after %s there is still:\n  %s", timeout, strings.Join(left, "\n  "))
			return
		}
		time.Sleep(50 * time.Millisecond) // the kernel tells nobody of the end of foreign processes and mounts together
	}
}

// keptTraces has files of the last sandboxes that did not start, for `cloister trace`.
const keptTraces = "/run/cloister/traces"

// named are the paths below root whose last part has the text in it.
func named(root, text string) []string {
	var found []string
	_ = filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if name == keptTraces {
			return fs.SkipDir
		}
		if strings.Contains(filepath.Base(name), text) {
			found = append(found, name)
			if e.IsDir() {
				return fs.SkipDir
			}
		}
		if e.IsDir() && strings.HasSuffix(name, "/rootfs") {
			return fs.SkipDir
		}
		return nil
	})
	return found
}

func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Name()
	}
	return out
}

// Process is a process with its command line, the words separated by spaces.
type Process struct {
	PID     int
	Command string
}

// Processes are those whose command line or environment has the text in it, the test itself left out.
func Processes(text string) []Process {
	var found []Process
	for _, name := range names("/proc") {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		command, _ := os.ReadFile("/proc/" + name + "/cmdline")
		environ, _ := os.ReadFile("/proc/" + name + "/environ")
		if bytes.Contains(command, []byte(text)) || bytes.Contains(environ, []byte(text)) {
			found = append(found, Process{pid, strings.TrimSpace(string(bytes.ReplaceAll(command, []byte{0}, []byte{' '})))})
		}
	}
	return found
}

func processes(text string) []string {
	var found []string
	for _, p := range Processes(text) {
		found = append(found, fmt.Sprintf("%d: %.300s", p.PID, p.Command))
	}
	return found
}

// mounts are the mount points of this mount namespace with the text in them, the innermost first.
func mounts(text string) []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var found []string
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.Contains(f[4], text) {
			found = append([]string{f[4]}, found...)
		}
	}
	return found
}

// scrub removes what a failed test has left, so that it does no harm to the next.
func (d *Daemon) scrub() {
	for _, p := range Processes(d.dir) {
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	for _, m := range mounts(d.dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			d.t.Logf("unmounting %s: %v", m, err)
		}
	}
}
