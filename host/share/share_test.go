package share

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

// programEnv names another virtiofsd than the one that is installed.
const programEnv = "CLOISTER_TEST_VIRTIOFSD"

func needRoot(t *testing.T) {
	t.Helper()
	needs.Root(t, "mounts")
	if _, err := Find(""); err != nil {
		needs.Missing(t, "%v", err)
	}
}

// tempDir is a directory whose removal never goes through a mount that a broken test left.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "cloister-share")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if points, err := mountsBelow(dir); err != nil || len(points) > 0 {
			t.Errorf("mounts are left: %v, %v", points, err)
			_ = unmountBelow(context.Background(), dir)
			return
		}
		os.RemoveAll(dir)
	})
	return dir
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func start(t *testing.T, dir string) *Share {
	t.Helper()
	s, err := Start(testContext(t), Config{Dir: dir, Program: os.Getenv(programEnv), Args: []string{"--thread-pool-size=1", "--announce-submounts"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	})
	return s
}

func put(t *testing.T, name, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := openAt(unix.AT_FDCWD, name, unix.O_PATH)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func want(t *testing.T, name, content string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil || string(b) != content {
		t.Errorf("%s holds %q, %v; want %q", name, b, err, content)
	}
}

// connect plays the monitor: a connection makes virtiofsd confine itself. It returns the path of what it sees.
func connect(t *testing.T, s *Share) (root string) {
	t.Helper()
	return fmt.Sprintf("/proc/%d/root", confined(t, s.Socket(), s.PID()))
}

// confined connects and returns the process of virtiofsd that serves.
func confined(t *testing.T, socket string, daemon int) int {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for ctx := testContext(t); ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", daemon, daemon))
		for _, f := range strings.Fields(string(children)) {
			p, _ := strconv.Atoi(f)
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/etc", p)); errors.Is(err, fs.ErrNotExist) {
				return p
			}
		}
	}
	t.Fatalf("virtiofsd %d did not confine itself", daemon)
	return 0
}

func TestServedTreeFollows(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	s := start(t, filepath.Join(dir, "share"))
	put(t, dir+"/before/f", "1")
	guest, err := s.Bind(open(t, dir+"/before"), "before", BindOptions{})
	if err != nil || guest != GuestDir+"/before" {
		t.Fatal(guest, err)
	}
	root := connect(t, s)
	want(t, root+"/before/f", "1")
	put(t, dir+"/after", "2")
	if _, err := s.Bind(open(t, dir+"/after"), "file", BindOptions{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	want(t, root+"/file", "2")

	// What the daemon may change is what is shared writably, and nothing else.
	for name, ok := range map[string]bool{"/before/new": true, "/new": false, "/file": false} {
		f, err := os.OpenFile(root+name, os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			f.Close()
		}
		if ok != (err == nil) || !ok && !errors.Is(err, unix.EROFS) {
			t.Errorf("writing %s: %v", name, err)
		}
	}
	if err := s.Remove("file"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + "/file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a removed file is still served: %v", err)
	}
	want(t, dir+"/after", "2")
	if _, err := s.Bind(open(t, dir+"/after"), "before", BindOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name was shared twice: %v", err)
	}
	want(t, root+"/before/f", "1")
}

func TestPropagationOfTheHost(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	src := dir + "/src"
	if err := os.MkdirAll(src+"/late", 0o755); err != nil {
		t.Fatal(err)
	}
	// A source on a shared mount, as systemd makes all of them.
	for _, m := range [][2]any{{src, uintptr(unix.MS_BIND)}, {"", uintptr(unix.MS_PRIVATE)}, {"", uintptr(unix.MS_SHARED)}} {
		if err := unix.Mount(m[0].(string), src, "", m[1].(uintptr), ""); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = unix.Unmount(src, unix.MNT_DETACH) }()
	s := start(t, filepath.Join(dir, "share"))
	root := connect(t, s)
	for name, o := range map[string]BindOptions{"follow": {Submounts: true, Follow: true}, "not": {Submounts: true}} {
		if _, err := s.Bind(open(t, src), name, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", src+"/late", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	put(t, src+"/late/f", "late")
	want(t, root+"/follow/late/f", "late")
	if _, err := os.Stat(root + "/not/late/f"); err == nil {
		t.Error("a later mount appeared in a private volume")
	}
	// Ending the share leaves the host's mounts alone, those below a shared directory most of all.
	for _, name := range []string{"follow", "not"} {
		if err := s.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	want(t, src+"/late/f", "late")
	if _, err := s.Bind(open(t, src), "again", BindOptions{Submounts: true, Follow: true, ReadOnly: true, Recursive: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/again/late/f", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("recursively read-only: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, src+"/late/f", "late")
}

func TestRootFileSystem(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	base := filepath.Join(dir, strings.Repeat("long", 30))
	var layers []string
	for i := range 60 { // more text than one page holds
		l := filepath.Join(base, strconv.Itoa(i), "fs")
		put(t, filepath.Join(l, "layer"+strconv.Itoa(i)), strconv.Itoa(i))
		layers = append(layers, l)
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, filepath.Join(dir, "share"))
	root := connect(t, s)
	overlay := Mount{Type: "overlay", Source: "overlay", Options: []string{"index=off", "workdir=" + dir + "/work", "upperdir=" + dir + "/upper",
		"lowerdir=" + strings.Join(layers, ":")}}
	guest, err := s.Mount("c1", []Mount{overlay})
	if err != nil || guest != GuestDir+"/c1/rootfs" {
		t.Fatal(guest, err)
	}
	want(t, root+"/c1/rootfs/layer59", "59")
	put(t, root+"/c1/rootfs/new", "n")
	want(t, dir+"/upper/new", "n")
	if _, err := s.Mount("c2", []Mount{{Type: "bind", Source: layers[0], Options: []string{"ro", "rbind"}}}); err != nil {
		t.Fatal(err)
	}
	want(t, root+"/c2/rootfs/layer0", "0")
	if err := os.WriteFile(root+"/c2/rootfs/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("a read-only root: %v", err)
	}
	for _, bad := range [][]Mount{nil, {{Type: "format/overlay"}}, {{Type: "bind", Source: layers[0], Target: "a"}},
		{{Type: "erofs", Source: "/x", Options: []string{"loop"}}}, {{Type: "bind", Source: "/no/such"}}, {overlay, {Type: "nofs"}}} {
		if _, err := s.Mount("bad", bad); err == nil {
			t.Errorf("%v was mounted", bad)
		}
		if _, err := os.Lstat(root + "/bad"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v: something is left: %v", bad, err)
		}
	}
	if err := s.Remove("c1"); err != nil {
		t.Fatal(err)
	}
	want(t, layers[0]+"/layer0", "0")
	want(t, dir+"/upper/new", "n")
	if _, err := s.Mount("c1", []Mount{overlay}); err != nil {
		t.Fatalf("after removal: %v", err)
	}
}

func TestHostileNamesAndLinks(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	precious := put(t, dir+"/precious/f", "keep")
	s := start(t, filepath.Join(dir, "share"))
	root := connect(t, s)
	for _, name := range []string{"", ".", "..", "a/b", "../precious", strings.Repeat("x", 300), "a\x00"} {
		if _, err := s.Bind(open(t, dir+"/precious"), name, BindOptions{}); err == nil {
			t.Errorf("name %q was shared", name)
		}
		if err := s.Remove(name); err == nil {
			t.Errorf("name %q was removed", name)
		}
	}
	// A guest moves what holds a mount of the host away and puts a link there; unmounting by that path would hit the host.
	vol := dir + "/vol"
	for _, d := range []string{vol + "/a/b", dir + "/victim/b"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{vol + "/a/b", dir + "/victim/b"} {
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(d, unix.MNT_DETACH) }()
	}
	put(t, dir+"/victim/b/f", "keep")
	if _, err := s.Bind(open(t, vol), "vol", BindOptions{Submounts: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(root+"/vol/a", root+"/vol/moved"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(vol+"/moved/b", unix.MNT_DETACH) }()
	if err := os.Symlink(dir+"/victim", root+"/vol/a"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/precious", root+"/vol/rootfs"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, dir+"/victim/b/f", "keep")
	want(t, precious, "keep")
	if l, err := os.Readlink(vol + "/rootfs"); err != nil || l != dir+"/precious" {
		t.Errorf("the volume has changed: %q, %v", l, err)
	}
}

// TestCleanupRefuses shows that Cleanup of a wrong directory destroys nothing.
func TestCleanupRefuses(t *testing.T) {
	dir := tempDir(t)
	put(t, dir+"/a/names/f", "content")
	if err := Cleanup(t.Context(), dir+"/a"); err == nil {
		t.Error("a directory with content was removed")
	}
	want(t, dir+"/a/names/f", "content")
	put(t, dir+"/elsewhere/f", "")
	if err := os.Mkdir(dir+"/b", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../elsewhere", dir+"/b/shared"); err != nil {
		t.Fatal(err)
	}
	if err := Cleanup(t.Context(), dir+"/b"); err == nil {
		t.Error("a directory with a link was removed")
	}
	want(t, dir+"/elsewhere/f", "")
	if err := Cleanup(t.Context(), dir+"/none"); err != nil {
		t.Error(err)
	}
	if err := os.Symlink("elsewhere", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"/", "share", dir + "/link", dir + "/elsewhere/f"} {
		if err := Cleanup(t.Context(), bad); err == nil {
			t.Errorf("%s was cleaned", bad)
		}
	}
	want(t, dir+"/elsewhere/f", "")
}

func TestDaemonThatEnds(t *testing.T) {
	needRoot(t)
	dir := tempDir(t)
	s := start(t, filepath.Join(dir, "share"))
	if err := unix.Kill(s.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-testContext(t).Done():
		t.Fatal("its end was not seen")
	}
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("reason: %v", err)
	}
	if _, err := Start(t.Context(), Config{Dir: dir + "/x", Started: func(int) error { return errors.New("no cgroup") }}); err == nil {
		t.Error("a failing hook did not end the start")
	}
	if _, err := os.Lstat(dir + "/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left after a failed start: %v", err)
	}
	if _, err := Start(t.Context(), Config{Dir: dir + "/x", Program: "/bin/true"}); err == nil {
		t.Error("/bin/true was taken for virtiofsd")
	}
	long := start(t, filepath.Join(dir, strings.Repeat("x", 100), "share"))
	if len(long.Socket()) > maxSocketPath {
		t.Errorf("socket %s", long.Socket())
	}
	connect(t, long)
}
