package policy_test

import (
	"log/slog"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	guestagent "github.com/cloister/cloister/guest/agent"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// imageVolume is a directory that the image declares as a volume, as the generator declares it for Cloister's runtime.
func imageVolume(destination string) kubepod.Mount {
	base := destination[strings.LastIndexByte(destination, '/')+1:]
	return kubepod.Mount{Destination: destination, Kind: "bind", Source: "^$(cpath)/$(bundle-id)-" + agent.ImageVolumePattern + "-" + base + "$",
		Options: []string{"rbind", "rprivate", "rw"}, Real: func(id string) string { return kubepod.SharedDir + agent.ImageVolume(id, 0, destination) }}
}

// TestImageVolumeAttacks: only what the guest makes is mounted where the image declares a volume.
func TestImageVolumeAttacks(t *testing.T) {
	const db = "/var/lib/postgresql/data"
	web := kubepod.Workload("web", imageVolume(db))
	type req = *agent.CreateContainerRequest
	source := func(s func(r req) string) func(req) {
		return func(r req) { mountAt(r, db).Source = s(r) }
	}
	const refused = "-imagevolume[0-9]{5}-data" // what the policy wants
	attackAll(t, kubepod.Data(kubepod.Pause(), web), web.Request, []attack{
		{"directory of the host", source(func(req) string { return "/var/lib/containerd/io.containerd.grpc.v1.cri/containers/x/volumes/ab" }), refused},
		{"copied directory", source(func(r req) string { return kubepod.SharedDir + r.ContainerId + "-0123456789abcdef-data" }), refused},
		{"copied below it", source(func(r req) string { return kubepod.SharedDir + agent.ImageVolume(r.ContainerId, 0, db) + "/x-data" }), refused},
		{"of another container", source(func(req) string { return kubepod.SharedDir + agent.ImageVolume(kubepod.ID(99), 0, db) }), refused},
		{"of another place", source(func(r req) string { return kubepod.SharedDir + agent.ImageVolume(r.ContainerId, 0, "/etc") }), refused},
		{"of watched files", source(func(r req) string { return kubepod.SharedDir + "watchable/" + agent.ImageVolume(r.ContainerId, 0, db) }), refused},
		{"memory of the pod", source(func(req) string { return "/run/kata-containers/sandbox/ephemeral/data" }), refused},
		{"directory of the guest", source(func(req) string { return "/run/kata-containers/sandbox/local/data" }), refused},
		{"file system", func(r req) { m := mountAt(r, db); m.Type, m.Source = "tmpfs", "tmpfs" }, "OCI.Mounts"},
		{"at another place", func(r req) { mountAt(r, db).Destination = "/etc" }, "OCI.Mounts"},
		{"read-only", func(r req) { mountAt(r, db).Options[2] = "ro" }, "OCI.Mounts"},
	})
}

// TestImageVolumesOfOtherGenerators: a policy that lets the host copy the directory, as Kata's generator declares it, admits the
// runtimes that do so, the one whose guest makes it, and those that leave it out.
func TestImageVolumesOfOtherGenerators(t *testing.T) {
	const db = "/var/lib/mysql"
	web := kubepod.Workload("web", kubepod.SharedMount(db, "rbind", "rprivate", "rw"))
	e := kubeEngine(t, kubepod.Data(kubepod.Pause(), web))
	mustAllow(t, e, kubepod.Sandbox())
	for n, change := range []func(*agent.CreateContainerRequest){
		func(*agent.CreateContainerRequest) {},
		func(r *agent.CreateContainerRequest) {
			mountAt(r, db).Source = kubepod.SharedDir + agent.ImageVolume(r.ContainerId, 3, db)
		},
		dropMount(db),
	} {
		id := kubepod.ID(n + 1)
		r := web.Request(id)
		change(r)
		mustAllow(t, e, r)
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: id})
	}
}

// TestImageVolumeHidesNothing: a host copies a ConfigMap under the name of an image volume, so that the rules see its content and the
// container would see the image's directory. The guest refuses the copies, and then the rules do the container.
func TestImageVolumeHidesNothing(t *testing.T) {
	data, web := boundPod()
	id := kubepod.ID(1)
	conf, one := kubepod.SharedDir+agent.ImageVolume(id, 0, "/etc/app/conf"), kubepod.SharedDir+id+"-0123456789abcdef-one.txt"
	layout := guestagent.DefaultLayout()
	guestRoot := layout.Root
	layout.Root = t.TempDir()
	guest := guestagent.New(guestagent.Config{Gate: gate.NewOpen(gate.Options{}), Log: slog.New(slog.DiscardHandler), Layout: layout})
	e := kubeEngine(t, data)
	mustAllow(t, e, kubepod.Sandbox())
	for _, r := range boundCopies(conf, one) {
		undo, err := e.Begin(t.Context(), "CopyFileRequest", r)
		if err != nil {
			t.Fatal(err)
		}
		copied := proto.CloneOf(r)
		copied.Path, copied.Uid, copied.Gid = strings.Replace(r.Path, guestRoot, layout.Root, 1), int32(os.Getuid()), int32(os.Getgid())
		_, err = guest.CopyFile(t.Context(), copied)
		if (err != nil) != strings.HasPrefix(r.Path, conf) {
			t.Errorf("%s: %v", r.Path, err)
		}
		if err != nil && undo != nil { // as the agent does with a copy that fails
			if err := undo(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := web.Request(id)
	mountAt(r, "/etc/app/conf").Source = conf
	mustDeny(t, e, r)
}
