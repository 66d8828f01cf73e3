package cri

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cloister/cloister/test/containerd"
)

// Client talks to the CRI services of one containerd.
type Client struct {
	runtime.RuntimeServiceClient
	Images runtime.ImageServiceClient
	Daemon *containerd.Daemon

	logs string // directory of pods' logs
}

// Dial connects to a daemon. The connection finds the daemon again after a restart.
func Dial(t testing.TB, d *containerd.Daemon) *Client {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+d.Address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &Client{RuntimeServiceClient: runtime.NewRuntimeServiceClient(conn), Images: runtime.NewImageServiceClient(conn), Daemon: d,
		logs: filepath.Join(t.TempDir(), "logs")}
	if err := os.MkdirAll(c.logs, 0o755); err != nil {
		t.Fatal(err)
	}
	c.ready(t)
	return c
}

// Restart restarts containerd and waits for its CRI services, which come up later than the rest in version 1.6.
func (c *Client) Restart(t testing.TB) {
	t.Helper()
	c.Daemon.Restart()
	c.ready(t)
}

func (c *Client) ready(t testing.TB) {
	t.Helper()
	var err error
	for ctx := call(t); ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if _, err = c.Status(ctx, &runtime.StatusRequest{}); err == nil {
			return
		}
	}
	t.Fatalf("the CRI services do not come up: %v", err)
}

// callTimeout is more than the 2 minutes that the kubelet lets a call take unless it is told otherwise: other tests may keep this machine busy.
const callTimeout = 5 * time.Minute

func call(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), callTimeout)
	t.Cleanup(cancel)
	return ctx
}

// wait polls until done says so, and fails the test when it does not in time. CRI of 1.6 has no events to wait for.
func wait(t testing.TB, timeout time.Duration, what string, done func() bool) bool {
	t.Helper()
	for deadline := time.Now().Add(timeout); ; time.Sleep(50 * time.Millisecond) {
		if done() {
			return true
		}
		if time.Now().After(deadline) {
			t.Errorf("after %s: not yet %s", timeout, what)
			return false
		}
	}
}
