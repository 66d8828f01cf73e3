package remotehypervisor

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"

	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/remote"
	"github.com/cloister/cloister/test/fakeguest"
	"github.com/cloister/cloister/wire/agent"
)

// fakeVM is a VM whose guest is a fakeguest.
type fakeVM struct {
	vmm.Plug
	mux    *yamux.Session
	guest  fakeguest.Guest
	once   sync.Once
	exited chan struct{}
}

func startFake(context.Context, vmm.Config) (*fakeVM, error) {
	ours, theirs := net.Pipe()
	v := &fakeVM{exited: make(chan struct{})}
	go func() { _ = v.guest.Serve(theirs) }()
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	var err error
	v.mux, err = yamux.Client(ours, c)
	return v, err
}

func (v *fakeVM) Dial(_ context.Context, port uint32) (net.Conn, error) {
	s, err := v.mux.Open()
	if err == nil {
		err = binary.Write(s, binary.BigEndian, port)
	}
	return s, err
}
func (v *fakeVM) Exited() <-chan struct{}  { return v.exited }
func (v *fakeVM) Err() error               { return nil }
func (v *fakeVM) ConsoleTail(int) []string { return nil }
func (v *fakeVM) FatalReason() string      { return "" }
func (v *fakeVM) PID() int                 { return 0 }
func (v *fakeVM) Stop(context.Context) error {
	v.once.Do(func() { v.mux.Close(); close(v.exited) })
	return nil
}

func TestRemote(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	var vm *fakeVM
	var got vmm.Config
	s, err := Serve(filepath.Join(dir, "sock"), Options{
		Dir: dir, Configure: true,
		Start: func(ctx context.Context, cfg vmm.Config) (_ vmm.Machine, err error) {
			got = cfg
			vm, err = startFake(ctx, cfg)
			return vm, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	v, err := remote.Start(ctx, vmm.Config{VCPUs: 2, MemoryMiB: 512, NetNS: "/run/netns/x"},
		remote.Config{Socket: filepath.Join(dir, "sock"), ID: "pod-1", Initdata: "version = \"0.1.0\""})
	if err != nil {
		t.Fatal(err)
	}
	if got.VCPUs != 2 || got.MemoryMiB != 512 || got.NetNS != "/run/netns/x" || len(got.InitdataImage) == 0 {
		t.Errorf("got %+v", got)
	}
	for range 2 { // several connections, one after the other and at the same time
		conn, err := v.Dial(ctx, remote.AgentPort)
		if err != nil {
			t.Fatal(err)
		}
		client := ttrpc.NewClient(conn)
		defer client.Close()
		if _, err := agent.NewHealthClient(client).Check(ctx, &agent.CheckRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if calls := vm.guest.Calls(); !slices.Contains(calls, "UpdateInterface") && !slices.Contains(calls, "UpdateInterfaceRequest") {
		t.Errorf("calls %q", calls)
	}
	if err := v.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	<-vm.Exited()
	if _, err := os.Stat(filepath.Join(dir, "pod-1")); !os.IsNotExist(err) {
		t.Errorf("the VM's directory: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
