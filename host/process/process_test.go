package process

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

func TestStartIn(t *testing.T) {
	readlink := needs.Program(t, "readlink")
	netns := otherNetwork(t)
	where := func(ns string) string {
		t.Helper()
		c, err := StartIn(ns, readlink, []string{"/proc/self/ns/net"}, Environment(t.TempDir()))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		return strings.Join(c.Output.Lines(1), "")
	}
	ours, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if in := where(netns); in == ours || !strings.HasPrefix(in, "net:[") {
		t.Errorf("the child ran in %q, we are in %q", in, ours)
	}
	if in := where(""); in != ours {
		t.Errorf("a child without a namespace ran in %q, not in ours, %q", in, ours)
	}
	if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != ours {
		t.Errorf("we are in %q now, were in %q", now, ours)
	}
	if _, err := StartIn("/nonexistent/netns", readlink, nil, nil); err == nil || !strings.Contains(err.Error(), "/nonexistent/netns") {
		t.Errorf("missing namespace: %v", err)
	}
}

// otherNetwork makes a network namespace that lives as long as the test.
func otherNetwork(t *testing.T) string {
	t.Helper()
	ready, end := make(chan error), make(chan struct{})
	var path string
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNET)
		path = "/proc/" + strconv.Itoa(unix.Getpid()) + "/task/" + strconv.Itoa(unix.Gettid()) + "/ns/net"
		ready <- err
		<-end
	}()
	t.Cleanup(func() { close(end) })
	if err := <-ready; err != nil {
		needs.Missing(t, "the right to make network namespaces: %v", err)
	}
	return path
}
