package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// process is what a container's process is given: arguments, environment, directory, host name, devices, limits.
func process(t *testing.T, p *Pod, main *Container) {
	config := Shell("process", `echo "$FROM_IMAGE|$A|$EMPTY|$SPACES|$LINES|$HOSTNAME"; pwd; hostname; echo "$0|$1|$2"; exit 0`)
	config.Args = []string{"zero", "a b", "$(C)\n'\""}
	config.WorkingDir = "/work/dir"
	config.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("1")}, {Key: "EMPTY", Value: nil}, {Key: "SPACES", Value: []byte(" x  y ")}, {Key: "LINES", Value: []byte("l1\nl2")}}
	k := p.RunContainer(t, config)
	k.ExpectExit(0)
	want := "busybox|1|| x  y |l1\nl2|one\n/work/dir\none\nzero|a b|$(C)\n'\"\n"
	wait(t, exitTimeout, "the log is whole", func() bool { return len(k.Output()) >= len(want) })
	if got := k.Output(); got != want {
		t.Errorf("the process saw %q, expected %q", got, want)
	}
	k.Remove()
	main.ExpectSh("cat /proc/1/comm /proc/sys/kernel/hostname; for d in null zero full random urandom tty ptmx; do [ -c /dev/$d ] || echo no $d; done; ls -l /dev/fd | sed 's/.*-> //'; echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c", "sh\none\n/proc/self/fd\n3\n3")
	main.ExpectSh("cat /proc/timer_list; [ ! -e /proc/kcore ] || cat /proc/kcore; [ -w /sys/kernel ] && touch /sys/kernel/x 2>/dev/null; echo 1 > /proc/sys/kernel/sysrq 2>/dev/null || echo read-only", "read-only")
}

// identity is users, groups, capabilities and privileges.
func identity(t *testing.T, p *Pod, _ *Container) {
	facts := func(name string, change func(*runtime.LinuxContainerSecurityContext)) string {
		t.Helper()
		config := Program(name, "facts")
		change(config.Linux.SecurityContext)
		k := p.RunContainer(t, config)
		k.ExpectExit(0)
		k.Says("mount /sys")
		return k.Output()
	}
	expect := func(name, got string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(got, w+"\n") {
				t.Errorf("%s: no line %q in\n%s", name, w, got)
			}
		}
	}
	got := facts("root", func(*runtime.LinuxContainerSecurityContext) {})
	expect("root", got, "uid 0 gid 0 groups 0", "cwd /", "pid 1 ppid 0", "CapEff 00000000a80425fb", "NoNewPrivs 0")
	got = facts("user", func(s *runtime.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtime.Int64Value{Value: 1000}
		s.RunAsGroup = &runtime.Int64Value{Value: 3000}
		s.SupplementalGroups = []int64{5000, 5001}
		s.NoNewPrivs = true
		s.ReadonlyRootfs = true
	})
	expect("user", got, "uid 1000 gid 3000 groups 2000 3000 5000 5001", "CapEff 0000000000000000", "NoNewPrivs 1")
	if !strings.Contains(got, "mount / ro") {
		t.Errorf("the root is not read-only:\n%s", got)
	}
	got = facts("named", func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "tester" })
	expect("named", got, "uid 1000 gid 1000 groups 1000 2000")
	got = facts("capabilities", func(s *runtime.LinuxContainerSecurityContext) {
		s.Capabilities = &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"CHOWN", "KILL"}}
	})
	expect("capabilities", got, "CapEff 00000000a80435da")
	got = facts("none", func(s *runtime.LinuxContainerSecurityContext) {
		s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
	})
	expect("none", got, "CapEff 0000000000000000", "CapBnd 0000000000000000")
	got = facts("all", func(s *runtime.LinuxContainerSecurityContext) {
		s.Capabilities = &runtime.Capability{AddCapabilities: []string{"ALL"}}
	})
	expect("all", got, "CapEff "+ownCapabilities(t)) // "all" are those of containerd itself
}

// files are those that the kubelet and containerd put into every container, and mounts of host files.
func files(t *testing.T, p *Pod, main *Container) {
	main.ExpectSh("cat /etc/resolv.conf", "search test.svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5")
	main.ExpectSh("cat /etc/hostname", "one")
	main.ExpectSh("df -m /dev/shm | awk 'NR==2 {print ($2 >= 64)}'; echo x > /dev/shm/x; cat /dev/shm/x; rm /dev/shm/x", "1\nx")

	hosts := p.File(t, "etc-hosts", HostsFile(p.IP(), "one"))
	last := p.File(t, "containers/files/0a1b2c3d", "")
	host := filepath.Join(t.TempDir(), "host-path")
	if err := os.MkdirAll(filepath.Join(host, "sub/deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(host, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("a", "from the host\n")
	put("sub/deep/b", "deep\n")
	config := Shell("files", Sleeper)
	config.Linux.SecurityContext.ReadonlyRootfs = true
	config.Annotations = map[string]string{"io.kubernetes.container.terminationMessagePath": "/dev/termination-log"}
	config.Mounts = []*runtime.Mount{
		Mount(hosts, "/etc/hosts"), Mount(last, "/dev/termination-log"), Mount(host, "/mnt/host"), ReadOnly(host, "/mnt/ro"),
		Mount(filepath.Join(host, "sub/deep"), "/mnt/sub-path"), ReadOnly(filepath.Join(host, "a"), "/mnt/file"), ReadOnly("/etc/hostname", "/mnt/new/dir/file"),
	}
	k := p.RunContainer(t, config)
	k.ExpectSh("grep -c alias.test /etc/hosts; cat /mnt/host/a /mnt/file /mnt/sub-path/b", "1\nfrom the host\nfrom the host\ndeep")
	k.ExpectSh("echo new > /mnt/host/made && cat /mnt/ro/made", "new")
	for _, script := range []string{"echo x > /mnt/ro/a", "echo x > /mnt/file", "echo x > /new", "rm /mnt/ro/made"} {
		if r := k.Exec("sh", "-c", script); r.Code == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
			t.Errorf("%q on what is read-only: %+v", script, r)
		}
	}
	if data, err := os.ReadFile(filepath.Join(host, "made")); string(data) != "new\n" {
		t.Errorf("what the container wrote to a hostPath is on the host %q, %v", data, err)
	}
	put("later", "later\n")
	k.ExpectSh("cat /mnt/host/later; stat -c '%a %u' /mnt/host/a", "later\n644 0")
	k.ExpectSh("echo 'the last words' > /dev/termination-log; cat /dev/termination-log", "the last words")
	k.Stop(60)
	k.ExpectExit(0)
	if data, err := os.ReadFile(last); string(data) != "the last words\n" {
		t.Errorf("the termination message is on the host %q, %v", data, err)
	}
	k.Remove()
}

// ownCapabilities are those of this process, and so of the containerd that it starts.
func ownCapabilities(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "CapEff:\t")
	line, _, _ := strings.Cut(rest, "\n")
	return line
}
