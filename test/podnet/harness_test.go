package podnet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

const cniPath = "/usr/lib/cni"

// need skips a test when something for it is missing and says what. In CI, as root, everything has to be there.
func need(t testing.TB) {
	t.Helper()
	needs.Root(t, "network namespaces")
	for _, plugin := range []string{"bridge", "ptp", "portmap", "host-local", "macvlan"} {
		needs.Files(t, filepath.Join(cniPath, plugin))
	}
	needs.Files(t, "/dev/net/tun")
	needs.Programs(t, "ip", "tc", "iptables")
	if err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
		needs.Missing(t, "the right to make network namespaces: %v", err)
	}
}

// netns is a network namespace with a file.
type netns struct {
	t    testing.TB
	path string
	file *os.File
}

// newNetns makes a namespace with loopback up, which goes with the test.
func newNetns(t testing.TB, name string) *netns {
	t.Helper()
	n := &netns{t: t, path: filepath.Join(t.TempDir(), name)}
	if err := os.WriteFile(n.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), n.path, "", unix.MS_BIND, "")
	})
	if err != nil {
		t.Fatal("making a network namespace:", err)
	}
	if n.file, err = os.Open(n.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.remove)
	n.run("ip link set lo up")
	return n
}

// remove unmounts the namespace's file; the rest goes with the last user.
func (n *netns) remove() {
	_ = unix.Unmount(n.path, unix.MNT_DETACH)
	n.file.Close()
}

// onThread calls fn on a thread that ends afterwards, so that it may be left in any namespace.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread() // the first thread cannot end
			result <- onThread(fn)
			return
		}
		result <- fn()
	}()
	return <-result
}

// do calls fn in the namespace.
func (n *netns) do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return fn()
	})
}

// must is do, and the end of the test on an error.
func (n *netns) must(fn func() error) {
	n.t.Helper()
	if err := n.do(fn); err != nil {
		n.t.Fatal(err)
	}
}

// command runs a program in the namespace.
func (n *netns) command(stdin string, env []string, name string, args ...string) (string, error) {
	var out []byte
	err := n.do(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		cmd.Env = append(os.Environ(), env...)
		var err error
		if out, err = cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return nil
	})
	return string(out), err
}

// run runs commands, one in each line.
func (n *netns) run(lines string) string {
	n.t.Helper()
	var all strings.Builder
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		words := strings.Fields(line)
		out, err := n.command("", nil, words[0], words[1:]...)
		if err != nil {
			n.t.Fatal(err)
		}
		all.WriteString(out)
	}
	return all.String()
}

// timers are what changes by itself in the description of a bridge.
var timers = regexp.MustCompile(`[a-z_]+_timer +[0-9.]+ `)

// snapshot is the namespace's links, addresses, routes and traffic control, as the distribution's own tools show them.
func (n *netns) snapshot() string {
	n.t.Helper()
	text := timers.ReplaceAllString(n.run("ip -d link"), "")
	text += n.run("ip -br -4 addr\nip route\nip neigh show nud permanent\ntc qdisc")
	for _, link := range strings.Fields(n.run("ls /proc/self/net/dev_snmp6")) {
		if link != "lo" {
			text += n.run("tc filter show dev " + link + " ingress")
		}
	}
	return text
}

// settle waits until the kernel has told eth0 its carrier and its addresses, which it does a while after they are there.
func (n *netns) settle(ctx context.Context) {
	n.t.Helper()
	poll(n.t, ctx, "eth0", func() bool {
		return strings.Contains(n.run("ip -br link show eth0"), " UP ") && n.run("ip -6 addr show tentative") == ""
	})
}

func (n *netns) expectSnapshot(want, when string) {
	n.t.Helper()
	if got := n.snapshot(); got != want {
		n.t.Errorf("%s the namespace differs.\nexpected:\n%s\ngot:\n%s", when, want, got)
	}
}

func stateFile(t testing.TB) string { return filepath.Join(t.TempDir(), "network.json") }

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}
