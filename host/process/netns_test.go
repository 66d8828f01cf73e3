package process

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestStartIn(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	for _, p := range []string{"unshare", "readlink"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
	// A namespace that a sleeping process keeps.
	keeper := exec.Command("unshare", "--net", "sh", "-c", "readlink /proc/self/ns/net; exec sleep 100")
	out, err := keeper.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := keeper.Start(); err != nil {
		t.Skipf("making a network namespace: %v", err)
	}
	defer func() { _ = keeper.Process.Kill(); _ = keeper.Wait() }()
	buf := make([]byte, 100)
	n, err := out.Read(buf)
	if err != nil {
		t.Skipf("making a network namespace: %v", err)
	}
	want := strings.TrimSpace(string(buf[:n]))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	run := func(netns string) string {
		c, err := StartIn(netns, "readlink", []string{"/proc/self/ns/net"}, Environment("/tmp"))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		return strings.Join(c.Output.Lines(1), "")
	}
	if got := run(filepath.Join("/proc", strconv.Itoa(keeper.Process.Pid), "ns/net")); got != want {
		t.Errorf("the child is in %s, expected %s", got, want)
	}
	if got := run(""); got == want {
		t.Errorf("our own children are in %s now", got)
	}
	if _, err := StartIn("/nonexistent", "readlink", nil, nil); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("a namespace that is not there: %v", err)
	}
	if _, err := StartIn(os.DevNull, "readlink", nil, nil); err == nil {
		t.Error("a file that is no namespace was entered")
	}
}
