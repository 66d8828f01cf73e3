package events

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	events "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// containerd takes events; it can be stopped and started again.
type containerd struct {
	path string
	mu   sync.Mutex
	got  []string
	more chan struct{}
	deny codes.Code
}

func (c *containerd) Forward(_ context.Context, r *events.ForwardRequest) (*emptypb.Empty, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deny != codes.OK {
		code := c.deny
		c.deny = codes.OK
		return nil, status.Error(code, "no")
	}
	var e eventtypes.TaskExit
	if err := proto.Unmarshal(r.Envelope.Event.Value, &e); err != nil {
		return nil, err
	}
	c.got = append(c.got, fmt.Sprintf("%s %s %s %s", r.Envelope.Namespace, r.Envelope.Topic, r.Envelope.Event.TypeUrl, e.ContainerID))
	c.more <- struct{}{}
	return &emptypb.Empty{}, nil
}

func (c *containerd) start(t *testing.T) (stop func()) {
	t.Helper()
	os.Remove(c.path)
	l, err := net.Listen("unix", c.path)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	events.RegisterTTRPCEventsService(srv, c)
	go srv.Serve(context.Background(), l)
	return func() { srv.Close() }
}

func (c *containerd) wait(t *testing.T, n int) []string {
	t.Helper()
	for range n {
		select {
		case <-c.more:
		case <-time.After(20 * time.Second):
			t.Fatalf("got %v", c.got)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.got...)
}

func newContainerd(t *testing.T) *containerd {
	dir, err := os.MkdirTemp("", "ev")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &containerd{path: filepath.Join(dir, "s"), more: make(chan struct{}, 1000)}
}

func TestOrderAcrossARestart(t *testing.T) {
	c := newContainerd(t)
	stop := c.start(t)
	p := New(Config{Namespace: "k8s.io", TTRPCAddress: "unix://" + c.path})
	if err := p.Publish(&eventtypes.TaskStart{ContainerID: "0"}); err != nil {
		t.Fatal(err)
	}
	c.wait(t, 1)
	stop()
	for i := 1; i < 20; i++ {
		if err := p.Publish(&eventtypes.TaskExit{ContainerID: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	stop = c.start(t)
	defer stop()
	// An event whose answer was lost with the connection is sent again: at least once, and in order.
	var got []string
	for len(got) < 20 {
		got = slices.Compact(c.wait(t, 1))
	}
	if got[0] != "k8s.io /tasks/start containerd.events.TaskStart 0" {
		t.Errorf("first: %s", got[0])
	}
	for i := 1; i < 20; i++ {
		if want := fmt.Sprintf("k8s.io /tasks/exit containerd.events.TaskExit %d", i); got[i] != want {
			t.Errorf("event %d is %q", i, got[i])
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestRefusedAndFailed(t *testing.T) {
	for code, want := range map[codes.Code]int{codes.InvalidArgument: 1, codes.Unavailable: 2} {
		c := newContainerd(t)
		c.deny = code
		stop := c.start(t)
		p := New(Config{Namespace: "n", TTRPCAddress: c.path})
		p.Publish(&eventtypes.TaskOOM{ContainerID: "a"})
		p.Publish(&eventtypes.TaskOOM{ContainerID: "b"})
		if got := c.wait(t, want); len(got) != want {
			t.Errorf("%s: %v", code, got)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		stop()
	}
}

func TestFullQueueKeepsExits(t *testing.T) {
	c := newContainerd(t)
	p := New(Config{Namespace: "n", TTRPCAddress: c.path, Queue: 10})
	for i := range 5 {
		p.Publish(&eventtypes.TaskExit{ContainerID: fmt.Sprint("exit", i)})
	}
	for i := range 100 {
		p.Publish(&eventtypes.TaskStart{ContainerID: fmt.Sprint(i)})
	}
	defer c.start(t)()
	got := c.wait(t, 10)
	for i := range 5 {
		if !strings.HasSuffix(got[i], fmt.Sprint("exit", i)) {
			t.Errorf("lost an exit: %v", got)
		}
	}
	if !strings.HasSuffix(got[9], " 99") {
		t.Errorf("the newest is lost: %v", got)
	}
	p.Close(t.Context())
}

func TestCloseSaysWhatIsLost(t *testing.T) {
	p := New(Config{Namespace: "n", TTRPCAddress: filepath.Join(t.TempDir(), "none")})
	p.Publish(&eventtypes.TaskExit{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); err == nil || !strings.Contains(err.Error(), "last 1 events") {
		t.Errorf("got %v", err)
	}
}

func TestPublishBinary(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "containerd")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$@\" > "+dir+"/args.new\ncat > "+dir+"/stdin\nmv "+dir+"/args.new "+dir+"/args\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := New(Config{Namespace: "n", Address: "/run/c.sock", PublishBinary: script})
	p.Publish(&eventtypes.TaskExit{ContainerID: "x"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil || string(args) != "--address /run/c.sock publish --topic /tasks/exit --namespace n\n" {
		t.Errorf("%q %v", args, err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "stdin")); !strings.Contains(string(b), "containerd.events.TaskExit") {
		t.Errorf("stdin %q", b)
	}
}

func TestNowhere(t *testing.T) {
	p := New(Config{Namespace: "n"})
	if err := p.Publish(&eventtypes.TaskExit{}); err != nil {
		t.Error(err)
	}
	if err := p.Publish(&emptypb.Empty{}); err == nil {
		t.Error("an event without a topic")
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestFullQueueOfOOMs has a guest that makes them up while containerd is away.
func TestFullQueueOfOOMs(t *testing.T) {
	c := newContainerd(t)
	p := New(Config{Namespace: "n", TTRPCAddress: c.path, Queue: 10})
	for i := range 5 {
		p.Publish(&eventtypes.TaskExit{ContainerID: fmt.Sprint("exit", i)})
	}
	for range 100 {
		p.Publish(&eventtypes.TaskOOM{ContainerID: "c"})
	}
	defer c.start(t)()
	got := c.wait(t, 10)
	for i := range 5 {
		if !strings.HasSuffix(got[i], fmt.Sprint("exit", i)) {
			t.Errorf("lost an exit: %v", got)
		}
	}
	p.Close(t.Context())
}
