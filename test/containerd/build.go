package containerd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/internal/paths"
)

// Need skips a test that runs containerd when something for it is missing, and says what. In CI everything has to be there.
func Need(t testing.TB) {
	t.Helper()
	needs.Long(t, "runs containerd")
	needs.Root(t, "containerd")
	needs.Files(t, "/usr/bin/containerd", "/usr/bin/ctr", "/usr/lib/cni/bridge", "/usr/lib/cni/portmap", "/bin/busybox")
	needs.Programs(t, "runc", "go", "iptables", "ip")
}

// current is the folder with the release that tools/go.mod names. It is built when it is not there.
func current(t testing.TB) string {
	t.Helper()
	tools := toolsDir(t)
	h := sha256.New()
	h.Write([]byte(runtime.Version()))
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(tools, name))
		if err != nil {
			t.Fatal(err)
		}
		h.Write(data)
	}
	return cached(t, hex.EncodeToString(h.Sum(nil))[:32], func(dir string) error {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "tool")
		cmd.Dir = tools
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

// cached is the folder of the cache with a name. When it is not there, build makes its content; other test binaries wait for that.
func cached(t testing.TB, name string, build func(dir string) error) string {
	t.Helper()
	cache := filepath.Join(home(t), "cache", "containerd")
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := paths.WaitLock(t.Context(), filepath.Join(cache, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	tmp, err := os.MkdirTemp(cache, "building-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	t.Log("building containerd; the next run finds it in", dir)
	if err := build(tmp); err != nil {
		t.Fatal("building containerd:", err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// home is the user's own CLOISTER_HOME, so that containerd is built once.
func home(t testing.TB) string {
	t.Helper()
	if home := os.Getenv("CLOISTER_HOME"); home != "" {
		return home
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(home, ".cloister")
}

// toolsDir is the folder with the module that names containerd's release.
func toolsDir(t testing.TB) string {
	t.Helper()
	_, self, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("the place of this source file is unknown")
	}
	return filepath.Join(filepath.Dir(self), "tools")
}
