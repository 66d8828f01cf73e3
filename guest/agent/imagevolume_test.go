package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
)

const volumesID = "c0ffee"

// imageWithVolumes is an agent with a container's root file system, of which the image declares some directories as volumes.
func imageWithVolumes(t *testing.T) (a *Agent, bundle, shared string) {
	t.Helper()
	a, shared = copier(t)
	bundle = filepath.Join(a.cfg.Layout.Root, volumesID)
	root := filepath.Join(bundle, "rootfs")
	err := errors.Join(os.MkdirAll(root+"/seeded", 0o755), os.WriteFile(root+"/seeded/file", []byte("image"), 0o600), os.MkdirAll(root+"/var/empty", 0o755),
		os.Chmod(root+"/var/empty", 0o750|os.ModeSticky), os.WriteFile(root+"/plain", nil, 0o600), os.Symlink("/var", root+"/link"),
		os.Symlink("../../../../..", root+"/up"), os.Symlink("/loop", root+"/loop"))
	if err != nil {
		t.Fatal(err)
	}
	return a, bundle, shared
}

func TestImageVolumes(t *testing.T) {
	a, bundle, shared := imageWithVolumes(t)
	at := func(n int, destination string) container.MountSpec {
		return container.MountSpec{Type: "bind", Destination: destination, Source: filepath.Join(shared, agent.ImageVolume(volumesID, n, destination))}
	}
	// What a host has copied there in spite of all is not looked at.
	for _, n := range []int{0, 1} {
		if err := os.MkdirAll(filepath.Join(at(n, "/seeded").Source, "evil"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(shared, "other-imagevolume00000-data")
	mounts := []container.MountSpec{at(0, "/seeded"), at(1, "/link/empty"), at(2, "/new/and/deep"), at(3, "/up"),
		{Type: "bind", Destination: "/conf", Source: shared + "/c0ffee-0123456789abcdef-conf"}, {Type: "bind", Destination: "/other", Source: other},
		{Type: "tmpfs", Destination: "/tmp", Source: at(4, "/tmp").Source}}
	dir, err := a.imageVolumes(volumesID, bundle+"/rootfs", mounts)
	if err != nil {
		t.Fatal(err)
	}
	root := bundle + "/rootfs"
	for i, want := range []string{root + "/seeded", bundle + "/volumes/1", bundle + "/volumes/2", root, shared + "/c0ffee-0123456789abcdef-conf", other, at(4, "/tmp").Source} {
		if mounts[i].Source != want {
			t.Errorf("%s is %s, expected %s", mounts[i].Destination, mounts[i].Source, want)
		}
	}
	if dir != bundle+"/volumes" {
		t.Errorf("volumes are in %s", dir)
	}
	var made, image unix.Stat_t
	if err := errors.Join(unix.Stat(mounts[1].Source, &made), unix.Stat(root+"/var/empty", &image)); err != nil || made.Mode != image.Mode || made.Uid != image.Uid {
		t.Errorf("the empty one has mode %o, the image's %o, %v", made.Mode, image.Mode, err)
	}
	for _, m := range mounts[1:3] {
		if list, err := os.ReadDir(m.Source); err != nil || len(list) != 0 {
			t.Errorf("%s: %v, %v", m.Destination, list, err)
		}
	}
	if _, err := os.Lstat(root + "/new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the image was changed: %v", err)
	}
	// With a disk for what the container writes, its volumes are there.
	if err := os.MkdirAll(filepath.Join(bundle, upperDir), 0o755); err != nil {
		t.Fatal(err)
	}
	again := []container.MountSpec{at(0, "/new")}
	if _, err := a.imageVolumes(volumesID, root, again); err != nil || again[0].Source != filepath.Join(bundle, upperDir, "volumes/0") {
		t.Errorf("with a disk: %s, %v", again[0].Source, err)
	}
	for _, bad := range []string{"/plain", "/plain/below", "/loop"} {
		if _, err := a.imageVolumes(volumesID, root, []container.MountSpec{at(9, bad)}); err == nil || !strings.Contains(err.Error(), "image volume "+bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestImageVolumeMounts has the volumes of a container as its runtime mounts them.
func TestImageVolumeMounts(t *testing.T) {
	needs.Root(t, "mounts")
	a, _, client, state := lives(t)
	root := filepath.Join(a.cfg.Layout.Root, volumesID, "rootfs")
	if err := errors.Join(os.MkdirAll(root+"/seeded", 0o755), os.WriteFile(root+"/seeded/file", []byte("image"), 0o600), os.WriteFile(filepath.Join(state, "code"), []byte("0"), 0o600)); err != nil {
		t.Fatal(err)
	}
	shared := filepath.Join(a.cfg.Layout.Root, "shared/containers")
	oci := &agent.Spec{Version: "1.1.0", Process: &agent.Process{Args: []string{"/x"}, Cwd: "/", User: &agent.User{}}, Root: &agent.Root{Path: root, Readonly: true}, Linux: &agent.Linux{},
		Mounts: []*agent.Mount{
			{Destination: "/seeded", Type: "bind", Source: shared + "/" + agent.ImageVolume(volumesID, 0, "/seeded"), Options: []string{"rbind", "rprivate", "rw"}},
			{Destination: "/new", Type: "bind", Source: shared + "/" + agent.ImageVolume(volumesID, 1, "/new"), Options: []string{"rbind", "rprivate", "rw"}},
		}}
	if err := os.MkdirAll(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CreateContainer(t.Context(), &agent.CreateContainerRequest{ContainerId: volumesID, OCI: oci}); err != nil {
		t.Fatal(err)
	}
	staged := filepath.Join(filepath.Dir(state), "containers", volumesID, "mounts")
	if b, err := os.ReadFile(staged + "/0/file"); err != nil || string(b) != "image" {
		t.Errorf("the image's file: %q, %v", b, err)
	}
	for _, n := range []string{"/0", "/1"} {
		if err := os.WriteFile(staged+n+"/written", nil, 0o600); err != nil {
			t.Errorf("writing: %v", err)
		}
	}
	if _, err := client.RemoveContainer(t.Context(), &agent.RemoveContainerRequest{ContainerId: volumesID}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Dir(root)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the container's directory is left: %v", err)
	}
}

// TestNothingIsCopiedToImageVolumes: what a policy takes for copied is what a container finds.
func TestNothingIsCopiedToImageVolumes(t *testing.T) {
	a, shared := copier(t)
	at := shared + "/" + agent.ImageVolume(volumesID, 0, "/data")
	for _, req := range []*agent.CopyFileRequest{request(at, unix.S_IFDIR|0o755, ""), request(at+"/file", unix.S_IFREG|0o600, "evil"), request(at, unix.S_IFLNK|0o777, "x")} {
		if _, err := a.CopyFile(t.Context(), req); err == nil || !strings.Contains(err.Error(), "into which nothing is copied") {
			t.Errorf("%s was copied: %v", req.GetPath(), err)
		}
	}
}
