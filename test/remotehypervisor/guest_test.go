package remotehypervisor

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/cloister/cloister/author/guestimage"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/host/vmm/remote"
	"github.com/cloister/cloister/test/vmtest"
	"github.com/cloister/cloister/wire/agent"
)

// TestGuest boots our guest image as a remote virtual machine, the way a shim has it done.
func TestGuest(t *testing.T) {
	vmtest.Need(t)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	image, err := guestimage.Build(ctx, guestimage.Options{
		CacheDir: filepath.Join(vmtest.Home(t), "cache/guest"), LockPath: "../../guest.lock", RepoDir: "../..",
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := Serve(filepath.Join(dir, "sock"), Options{
		Dir: dir, Configure: true,
		VM: vmm.Config{
			Kernel: filepath.Join(image.Dir, "vmlinuz"), Initrd: filepath.Join(image.Dir, "initrd.img"),
			Cmdline: "console=ttyS0 quiet panic=-1 no_timer_check oops=panic cloister.sandboxed",
			VCPUs:   1, MemoryMiB: 512, Accel: vmm.AccelTCG, UserNetwork: true,
		},
		Start: func(ctx context.Context, cfg vmm.Config) (vmm.Machine, error) {
			vm, err := qemu.Start(ctx, cfg)
			if err != nil {
				return nil, err // not a nil *VM in an interface
			}
			return vm, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	v, err := remote.Start(ctx, vmm.Config{VCPUs: 1, MemoryMiB: 512}, remote.Config{Socket: filepath.Join(dir, "sock"), ID: "remote-1"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := v.Dial(ctx, remote.AgentPort)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	a := agent.NewAgentServiceClient(client)
	details, err := a.GetGuestDetails(ctx, &agent.GuestDetailsRequest{})
	if err != nil || !slices.Contains(details.GetAgentDetails().GetExtraFeatures(), "cloister-sandboxed") {
		t.Errorf("details %v, %v", details, err)
	}
	routes, err := a.ListRoutes(ctx, &agent.ListRoutesRequest{})
	if err != nil || !slices.ContainsFunc(routes.GetRoutes(), func(r *agent.Route) bool { return r.Gateway == "10.0.2.2" }) {
		t.Errorf("routes %v, %v", routes, err)
	}
	vm := s.Machine("remote-1")
	if err := v.Stop(ctx); err != nil {
		t.Error(err)
	}
	<-vm.Exited()
	if _, err := os.Stat(filepath.Join(dir, "remote-1")); !os.IsNotExist(err) {
		t.Errorf("the VM's directory: %v", err)
	}
}
