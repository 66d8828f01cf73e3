package containerd

import (
	"os"
	"path/filepath"
	"testing"
)

// TestHalfRemoved tells bundles that containerd was removing from what a runtime has left.
func TestHalfRemoved(t *testing.T) {
	for _, c := range []struct {
		name  string
		path  string
		files []string // those that end with a slash are directories
		want  bool
	}{
		{"interrupted", "io.containerd.runtime.v2.task/k8s.io/.pod", []string{"address", "config.json", "shim.pid"}, true},
		{"nothing in it", "io.containerd.runtime.v2.task/k8s.io/.pod", nil, true},
		{"not hidden", "io.containerd.runtime.v2.task/k8s.io/pod", []string{"config.json"}, false},
		{"root file system", "io.containerd.runtime.v2.task/k8s.io/.pod", []string{"config.json", "rootfs/"}, false},
		{"socket of a virtual machine", "io.containerd.runtime.v2.task/k8s.io/.pod", []string{"qmp.sock"}, false},
		{"elsewhere", "io.containerd.grpc.v1.cri/sandboxes/.pod", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), c.path)
			if err := os.MkdirAll(name, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, file := range c.files {
				var err error
				if filepath.Base(file)+"/" == file {
					err = os.Mkdir(filepath.Join(name, file), 0o700)
				} else {
					err = os.WriteFile(filepath.Join(name, file), nil, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if got := halfRemoved(name); got != c.want {
				t.Errorf("halfRemoved is %v", got)
			}
		})
	}
	if !halfRemoved(filepath.Join(t.TempDir(), "io.containerd.runtime.v2.task/k8s.io/.gone")) {
		t.Error("a bundle that is gone by now counts")
	}
}
