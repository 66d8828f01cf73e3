package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/grpc/codes"

	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/fakeguest"
)

// stubborn is a machine whose end fails the first time.
type stubborn struct {
	*fakeguest.Machine
	asked atomic.Int32
}

func (s *stubborn) Stop(ctx context.Context) error {
	if s.asked.Add(1) == 1 {
		return errors.New("the monitor does not end")
	}
	return s.Machine.Stop(ctx)
}

// TestDeleteAgain cannot remove a pod at first: containerd is told, the pod stays, and the next deletion removes it, with one event.
func TestDeleteAgain(t *testing.T) {
	e := newEnv(t)
	start := e.cfg.StartVM
	e.guest.SetDenied("DestroySandboxRequest", "no")
	e.service.cfg.StartVM = func(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
		m, err := start(ctx, c)
		if err != nil {
			return nil, err
		}
		return &stubborn{Machine: m.(*fakeguest.Machine)}, nil
	}
	e.must(e.create("pod"), e.start("pod", ""))
	e.wait("pod", "")
	_, err := e.delete("pod", "")
	wantCode(t, err, codes.Unknown, "the monitor does not end")
	if !e.service.Busy() {
		t.Error("the shim has forgotten a pod that is still there")
	}
	_, err = e.delete("pod", "")
	e.must(err)
	e.wantEvents("", "create pod", "start pod", "exit pod/pod 0", "delete pod 0")
}

// TestMissingFiles names, with the real monitor, what is missing, and leaves nothing.
func TestMissingFiles(t *testing.T) {
	for name, line := range map[string]string{
		"program": `vmm.path = "/none/qemu"`, "kernel": `guest.kernel = "/none/kernel"`, "share": `storage.virtiofsd = "/none/virtiofsd"`,
	} {
		t.Run(name, func(t *testing.T) {
			needs.Programs(t, "qemu-system-x86_64")
			needs.Root(t, "control groups")
			e := newEnv(t)
			key, value, _ := strings.Cut(line, " = ")
			e.replace(key, value)
			if name == "share" {
				e.replace("storage.shared_fs", `"virtiofs"`)
			}
			e.service.cfg.StartVM = nil
			_, err := e.service.Create(testContext(t), &task.CreateTaskRequest{ID: "pod", Bundle: e.bundle(specOf("sandbox"))})
			if err == nil || !strings.Contains(err.Error(), filepath.Join("/none", filepath.Base(strings.Trim(value, `"`)))) {
				t.Errorf("error %v", err)
			}
			e.wantEvents("")
		})
	}
}

// TestNoImage says where a guest image is looked for when there is none.
func TestNoImage(t *testing.T) {
	e := newEnv(t)
	t.Setenv("CLOISTER_HOME", e.dir)
	for _, dir := range sandbox.ImageDirs() {
		if _, err := os.Stat(dir); err == nil {
			needs.Optional(t, "there is one in %s", dir)
		}
	}
	e.replace("guest.kernel", `""`)
	e.replace("guest.initrd", `""`)
	wantCode(t, e.create("pod"), codes.Unknown, "no guest image", "/etc/cloister/guest", "hint: ")
}
