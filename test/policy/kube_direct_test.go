package policy_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/author/genpolicy"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

const directManifest = `apiVersion: v1
kind: Pod
metadata: {name: web-bcdf-ghjkl, namespace: shop}
spec:
  securityContext: {fsGroup: 2000, fsGroupChangePolicy: OnRootMismatch}
  containers:
  - name: a
    image: registry.example/app:1
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: again, mountPath: /again, readOnly: true}
    - {name: cache, mountPath: /cache}
    - {name: scratch, mountPath: /scratch}
  - name: b
    image: registry.example/app:1
    volumeMounts:
    - {name: data, mountPath: /data, readOnly: true}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: again, persistentVolumeClaim: {claimName: data}}
  - {name: cache, persistentVolumeClaim: {claimName: cache}}
  - {name: scratch, emptyDir: {}}
`

// TestGeneratedDirectVolumes: a container gets the disks of its direct-assigned volumes as the settings say they are, and in no other way.
func TestGeneratedDirectVolumes(t *testing.T) {
	g := generate(t, directManifest, oneImage{}, func(s *genpolicy.Settings) {
		for _, d := range []string{
			`{"claim": "data", "fstype": "ext4", "options": ["data=ordered"], "metadata": {"fsGroup": "pod", "fsGroupChangePolicy": "pod"}}`,
			`{"claim": "cache", "fstype": "ext4", "metadata": {"createFilesystem": "true", "encryptionKey": "ephemeral"}}`,
		} {
			if err := s.AddDirectVolume(d); err != nil {
				t.Fatal(err)
			}
		}
	})
	a := func(id string, changes ...func(createRequest)) createRequest {
		r := g.request(t, "a", id)
		for _, change := range changes {
			change(r)
		}
		return r
	}
	at := func(r createRequest, disk string) *agent.Storage {
		for _, s := range r.Storages {
			if s.Source == disk {
				return s
			}
		}
		t.Fatalf("no storage is the disk %s", disk)
		return nil
	}
	data, cache := disks["data"], disks["cache"]
	start := func() *gate.Engine {
		e := g.engine(t)
		mustAllow(t, e, kubepod.Sandbox())
		mustAllow(t, e, g.request(t, "", kubepod.SandboxID))
		return e
	}
	first := a(kubepod.ID(1))
	want := &agent.Storage{Driver: "blk", Source: data, Fstype: "ext4", Options: []string{"data=ordered"}, MountPoint: diskAt(data), Shared: true,
		FsGroup: &agent.FSGroup{GroupId: 2000, GroupChangePolicy: agent.FSGroupChangePolicy_OnRootMismatch}}
	if got := at(first, data); !proto.Equal(got, want) {
		t.Fatalf("the honest host presents %v, want %v", got, want)
	}
	if m := mountAt(first, "/again"); m.Source != diskAt(data) {
		t.Fatalf("the second volume of the claim is at %s", m.Source)
	}
	for name, change := range map[string]func(createRequest){
		"another file system":       func(r createRequest) { at(r, data).Fstype = "squashfs" },
		"other options":             func(r createRequest) { at(r, data).Options = nil },
		"an option more":            func(r createRequest) { at(r, data).Options = append(at(r, data).Options, "noload") },
		"another group":             func(r createRequest) { at(r, data).FsGroup.GroupId = 0 },
		"groups changed everywhere": func(r createRequest) { at(r, data).FsGroup.GroupChangePolicy = agent.FSGroupChangePolicy_Always },
		"a new file system":         func(r createRequest) { at(r, data).DriverOptions = []string{"create_filesystem"} },
		"without encryption":        func(r createRequest) { at(r, cache).DriverOptions = []string{"create_filesystem"} },
		"an old disk for a new one": func(r createRequest) { at(r, cache).DriverOptions = nil },
		"another driver":            func(r createRequest) { at(r, data).Driver = "nvdimm" },
		"not shared":                func(r createRequest) { at(r, data).Shared = false },
		"one disk for two volumes":  onDisk(cache, data),
		"the disk of an emptyDir":   onDisk(data, disks["scratch"]),
		"two disks for one claim":   func(r createRequest) { mountAt(r, "/again").Source = diskAt("02/33") },
		"a directory of the disk":   func(r createRequest) { mountAt(r, "/data").Source += "/etc" },
		"a directory that is copied": func(r createRequest) {
			mountAt(r, "/data").Source = kubepod.SharedDir + kubepod.ID(1) + "-0123456789abcdef-data"
		},
		"without its mount": dropMount("/data"),
		"without its disk":  dropDisk(data),
		"with another disk": func(r createRequest) {
			s := proto.CloneOf(at(r, data))
			s.Source, s.MountPoint = "02/33", diskAt("02/33")
			r.Storages = append(r.Storages, s)
		},
		"the two exchanged": func(r createRequest) {
			onDisk(data, "x")(r)
			onDisk(cache, data)(r)
			onDisk("x", cache)(r)
			swapKinds(at(r, data), at(r, cache))
		},
		"writable": func(r createRequest) { o := mountAt(r, "/again").Options; o[len(o)-1] = "rw" },
	} {
		t.Run(name, func(t *testing.T) {
			e := start()
			mustDeny(t, e, a(kubepod.ID(1), change))
			mustAllow(t, e, a(kubepod.ID(1)))
		})
	}
	e := start()
	mustAllow(t, e, first)
	other := g.request(t, "b", kubepod.ID(2))
	onDisk(data, "02/33")(other)
	deniedFor(t, e, other, "data is disk 02/33, and data is disk "+data)
	other = g.request(t, "b", kubepod.ID(2))
	onDisk(data, cache)(other)
	deniedFor(t, e, other, "is disk "+cache)
	mustAllow(t, e, g.request(t, "b", kubepod.ID(2)))
	// The guest asks once more about disks that the host can read.
	for _, tc := range []struct {
		change func(*agent.Storage)
		want   bool
	}{
		{func(*agent.Storage) {}, true},
		{func(s *agent.Storage) { s.Fstype = "erofs" }, false},
		{func(s *agent.Storage) { s.Options = nil }, false},
		{func(s *agent.Storage) { s.DriverOptions = []string{"create_filesystem"} }, false},
	} {
		s := proto.CloneOf(want)
		tc.change(s)
		if _, err := e.Begin(t.Context(), "HostStorageRequest", s); (err == nil) != tc.want {
			t.Errorf("a disk that is not encrypted, %v: %v", s, err)
		}
	}
}

func dropDisk(disk string) func(createRequest) {
	return func(r createRequest) {
		var left []*agent.Storage
		for _, s := range r.Storages {
			if s.Source != disk {
				left = append(left, s)
			}
		}
		r.Storages = left
	}
}

// swapKinds gives each of two storages what the policy says of the other, but for the disk.
func swapKinds(a, b *agent.Storage) {
	a.Options, b.Options = b.Options, a.Options
	a.DriverOptions, b.DriverOptions = b.DriverOptions, a.DriverOptions
	a.FsGroup, b.FsGroup = b.FsGroup, a.FsGroup
}

// TestGeneratedClaims: without a word in the settings a claim is no disk.
func TestGeneratedClaims(t *testing.T) {
	g := generate(t, directManifest, oneImage{}, nil)
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	r := g.request(t, "b", kubepod.ID(2))
	if m := mountAt(r, "/data"); !strings.HasPrefix(m.Source, kubepod.SharedDir) {
		t.Fatalf("the claim is at %s", m.Source)
	}
	disk := proto.CloneOf(r)
	mountAt(disk, "/data").Source = diskAt("02/08")
	disk.Storages = append(disk.Storages, &agent.Storage{Driver: "blk", Source: "02/08", Fstype: "ext4", MountPoint: diskAt("02/08"), Shared: true})
	mustDeny(t, e, disk)
	mustAllow(t, e, r)
}
