package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cloister/cloister/host/cgroup"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/fakeguest"
)

// TestGroupOfOthers: a control group that has processes already is not the sandbox's, whatever the specification says. It would get the sandbox's
// limits, and at the sandbox's end everything in it would be killed.
func TestGroupOfOthers(t *testing.T) {
	needs.Root(t, "control groups")
	path := fmt.Sprintf("/cloister_others_%d", os.Getpid())
	l, err := cgroup.ParseLocation(path + "/service")
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	g, err := cgroup.Create(testContext(t), l, cgroup.Limits{}, other.Process.Pid)
	if err != nil {
		needs.Missing(t, "control groups: %v", err)
	}
	defer func() {
		if err := g.Destroy(testContext(t)); err != nil {
			t.Error(err)
		}
		for _, dir := range g.State().Paths {
			_ = os.Remove(filepath.Dir(dir))
		}
	}()
	for _, where := range []string{path + "/service", path} { // that of the process, and one above it
		c := testConfig(t, &fakeguest.Guest{})
		c.Spec.Linux.CgroupsPath = where
		s, err := Create(testContext(t), c)
		if err == nil {
			_ = s.Stop(testContext(t))
		}
		if err == nil || !strings.Contains(err.Error(), "has processes") || !strings.Contains(err.Error(), fmt.Sprint(other.Process.Pid)) {
			t.Errorf("%s: %v", where, err)
		}
		var how syscall.WaitStatus
		if pid, err := syscall.Wait4(other.Process.Pid, &how, syscall.WNOHANG, nil); err != nil || pid != 0 {
			t.Fatalf("%s: the other process has ended: %v, %v", where, how, err)
		}
		gone(t, c)
	}
	c := testConfig(t, &fakeguest.Guest{})
	c.Spec.Linux.CgroupsPath = path + "/pod"
	s, err := Create(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(testContext(t)); err != nil {
		t.Error(err)
	}
}
