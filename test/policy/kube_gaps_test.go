package policy_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

const gapsManifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: all}
data: {LEVEL: info, "9LIVES": cat}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: one}
data: {x: "1"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: two}
data: {y: "2"}
---
apiVersion: v1
kind: Pod
metadata: {name: web-bcdf-ghjkl, namespace: shop}
spec:
  containers:
  - name: a
    image: registry.example/app:1
    tty: true
    envFrom: [{configMapRef: {name: all}}, {secretRef: {name: unknown, optional: true}}]
    env:
    - {name: MODE, value: debug}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: LOST, valueFrom: {configMapKeyRef: {name: unknown, key: x, optional: true}}}
    - {name: MODE, value: production}
    volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: scratch, mountPath: /part, subPath: part}
    - {name: other, mountPath: /other}
    - {name: fast, mountPath: /fast}
    - {name: one, mountPath: /one/conf}
    - {name: two, mountPath: /two//conf/}
  - name: b
    image: registry.example/app:1
    volumeMounts:
    - {name: scratch, mountPath: /scratch}
    - {name: third, mountPath: /third}
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: other, emptyDir: {}}
  - {name: third, emptyDir: {}}
  - {name: fast, emptyDir: {medium: Memory}}
  - {name: one, configMap: {name: one}}
  - {name: two, configMap: {name: two}}
`

type createRequest = *agent.CreateContainerRequest

// withVariables is what the kubelet makes of the placeholders that stand for other things than the pod's name.
func withVariables(r createRequest) createRequest {
	for i, v := range r.OCI.Process.Env {
		r.OCI.Process.Env[i] = strings.ReplaceAll(v, "$(resource-field)", "2")
	}
	return r
}

func dropVariable(name string) func(createRequest) {
	return func(r createRequest) {
		r.OCI.Process.Env = slices.DeleteFunc(r.OCI.Process.Env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	}
}

func dropMount(destination string) func(createRequest) {
	return func(r createRequest) {
		r.OCI.Mounts = slices.DeleteFunc(r.OCI.Mounts, func(m *agent.Mount) bool { return m.Destination == destination })
	}
}

// onDisk has a volume on another disk.
func onDisk(from, to string) func(createRequest) {
	return func(r createRequest) {
		for _, s := range r.Storages {
			if s.Source == from {
				s.Source, s.MountPoint = to, diskAt(to)
			}
		}
		for _, m := range r.OCI.Mounts {
			if rest, ok := strings.CutPrefix(m.Source, diskAt(from)); ok {
				m.Source = diskAt(to) + rest
			}
		}
	}
}

// part is what has the guest make a directory for a sub-path.
func part(at string, options ...string) *agent.Storage {
	return &agent.Storage{Driver: "local", Source: "local", Fstype: "local", Options: options, MountPoint: at}
}

// copyConf copies the files of the two ConfigMaps of container a.
func copyConf(t *testing.T, e *gate.Engine, id string) {
	t.Helper()
	for _, v := range []struct{ at, key, value string }{{"1111111111111111", "x", "1"}, {"2222222222222222", "y", "2"}} {
		root := kubepod.SharedDir + id + "-" + v.at + "-conf"
		for _, r := range []proto.Message{dir(root), dir(root + "/..2026"), file(root+"/..2026/"+v.key, v.value), link(root+"/..data", "..2026"), link(root+"/"+v.key, "..data/"+v.key)} {
			mustAllow(t, e, r)
		}
	}
}

// requestA is an honest request for container a, whose ConfigMaps have places of their own.
func requestA(t *testing.T, g *generated, id string) createRequest {
	r := withVariables(g.request(t, "a", id))
	mountAt(r, "/one/conf").Source = kubepod.SharedDir + id + "-1111111111111111-conf"
	mountAt(r, "/two/conf").Source = kubepod.SharedDir + id + "-2222222222222222-conf"
	return r
}

func deniedFor(t *testing.T, e *gate.Engine, r proto.Message, want ...string) {
	t.Helper()
	err := ask(e, r)
	var d *gate.DeniedError
	if !errors.As(err, &d) {
		t.Fatalf("got %v, expected a refusal", err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the reason lacks %q: %v", w, err)
		}
	}
}

// TestGeneratedRequired: the host leaves out nothing of what manifest and image say, and disks stay what they are.
func TestGeneratedRequired(t *testing.T) {
	g := generate(t, gapsManifest, oneImage{}, nil)
	attacks := []struct {
		name   string
		change func(createRequest)
		want   []string
	}{
		{"disk for two volumes", onDisk(disks["other"], disks["scratch"]), []string{"conflicting_disks", "other is disk 02/05", "scratch is disk 02/05"}},
		{"two disks for a volume", func(r createRequest) { mountAt(r, "/part").Source = diskAt(disks["other"]) + "/part" }, []string{"conflicting_disks", "other is disk 02/06", "scratch is disk 02/06"}},
		{"disks exchanged among storages", func(r createRequest) {
			for _, s := range r.Storages {
				if s.Source == disks["other"] {
					s.Source, s.MountPoint = "02/09", diskAt("02/09")
				}
			}
		}, []string{"source"}},
		{"directory elsewhere", func(r createRequest) {
			r.Storages = append(r.Storages, part("/run/kata-containers/sandbox/storage/x", "mode=0777"))
		}, []string{"count(others)"}},
		{"directory of all", func(r createRequest) {
			r.Storages = append(r.Storages, part(mountAt(r, "/part").Source, "mode=04777"))
		}, []string{"count(others)"}},
		{"directory that is no sub-path", func(r createRequest) {
			r.Storages = append(r.Storages, part(mountAt(r, "/scratch").Source, "mode=0777"))
		}, []string{"count(others)"}},
		{"one path in two spellings", func(r createRequest) {
			m := proto.CloneOf(mountAt(r, "/two/conf"))
			m.Destination = "/two//conf/"
			r.OCI.Mounts = append(r.OCI.Mounts, m)
		}, []string{"count(destinations)"}},
		{"another spelling", func(r createRequest) { mountAt(r, "/two/conf").Destination = "/two/conf/" }, []string{"destination"}},
		{"another spelling of a path without its files", func(r createRequest) {
			m := mountAt(r, "/two/conf")
			m.Destination, m.Source = "/two//conf/", strings.Replace(m.Source, "2222222222222222", "3333333333333333", 1)
		}, []string{"tree"}},
		{"other directory of the volume", func(r createRequest) { mountAt(r, "/part").Source = diskAt(disks["scratch"]) + "/whole" }, []string{"source"}},
		{"swap", func(r createRequest) {
			r.OCI.Linux.Resources = &agent.LinuxResources{Memory: &agent.LinuxMemory{Swappiness: 100}}
		}, []string{"Swappiness: got 100, expected 0"}},
		{"no OOM killer", func(r createRequest) {
			r.OCI.Linux.Resources = &agent.LinuxResources{Memory: &agent.LinuxMemory{DisableOOMKiller: true}}
		}, []string{"DisableOOMKiller: got true, expected false"}},
		{"realtime", func(r createRequest) {
			r.OCI.Linux.Resources = &agent.LinuxResources{CPU: &agent.LinuxCPU{RealtimeRuntime: 1}}
		}, []string{"RealtimeRuntime: got 1, expected 0"}},
	}
	for _, name := range []string{"PATH", "LEVEL", "MODE", "POD", "CPUS"} {
		attacks = append(attacks, struct {
			name   string
			change func(createRequest)
			want   []string
		}{"without " + name, dropVariable(name), []string{"missing_of_required_env: got \"" + name + "\", expected nothing"}})
	}
	for _, d := range []string{"/scratch", "/part", "/other", "/fast", "/one/conf", "/two/conf"} {
		attacks = append(attacks, struct {
			name   string
			change func(createRequest)
			want   []string
		}{"without " + d, dropMount(d), []string{"missing_of_required_mounts: got \"" + d + "\", expected nothing"}})
	}
	for n, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			e, id := g.engine(t), kubepod.ID(n+1)
			mustAllow(t, e, kubepod.Sandbox())
			mustAllow(t, e, g.request(t, "", kubepod.SandboxID))
			copyConf(t, e, id)
			r := requestA(t, g, id)
			a.change(r)
			deniedFor(t, e, r, a.want...)
			mustAllow(t, e, requestA(t, g, id))
		})
	}
	for name, change := range map[string]func(createRequest){
		"old kubelet":        dropVariable("9LIVES"),
		"no host name":       dropVariable("HOSTNAME"),
		"no kind of console": dropVariable("TERM"),
		"service links":      addEnv("REDIS_SERVICE_HOST=10.0.0.7"),
		"as it is written":   func(r createRequest) { mountAt(r, "/two/conf").Destination = "/two//conf/" },
		"limits": func(r createRequest) {
			r.OCI.Linux.Resources = &agent.LinuxResources{Memory: &agent.LinuxMemory{Limit: 1 << 30, Swap: 1 << 30}, CPU: &agent.LinuxCPU{Shares: 2, Quota: 1000, Period: 10000, Cpus: "0"}}
		},
		"a directory":  func(r createRequest) { r.Storages = append(r.Storages, part(mountAt(r, "/part").Source, "mode=0777")) },
		"another disk": onDisk(disks["scratch"], "03"),
	} {
		t.Run(name, func(t *testing.T) {
			e, id := g.engine(t), kubepod.ID(1)
			mustAllow(t, e, kubepod.Sandbox())
			copyConf(t, e, id)
			r := requestA(t, g, id)
			change(r)
			mustAllow(t, e, r)
			probe := &agent.ExecProcessRequest{ContainerId: id, ExecId: "x", Process: &agent.Process{Args: []string{"true"}}}
			mustDeny(t, e, probe)
		})
	}
}

// TestGeneratedVolumes: a volume of the pod is the same disk in all containers, also after they were restarted.
func TestGeneratedVolumes(t *testing.T) {
	g := generate(t, gapsManifest, oneImage{}, nil)
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	copyConf(t, e, kubepod.ID(1))
	mustAllow(t, e, requestA(t, g, kubepod.ID(1)))
	b := func(id string, changes ...func(createRequest)) createRequest {
		r := g.request(t, "b", id)
		for _, change := range changes {
			change(r)
		}
		return r
	}
	deniedFor(t, e, b(kubepod.ID(2), onDisk(disks["scratch"], "02/11")), "got \"scratch is disk 02/11, and scratch is disk 02/05\", expected nothing")
	deniedFor(t, e, b(kubepod.ID(2), onDisk(disks["third"], disks["other"])), "got \"third is disk 02/06, and other is disk 02/06\", expected nothing") // of the other container
	deniedFor(t, e, b(kubepod.ID(2), onDisk(disks["third"], "x"), onDisk(disks["scratch"], disks["third"]), onDisk("x", disks["scratch"])), "is disk")
	undo, err := e.Begin(t.Context(), "CreateContainerRequest", b(kubepod.ID(2)))
	if err != nil {
		t.Fatal(err)
	}
	if err := undo(context.Background()); err != nil {
		t.Fatal(err)
	}
	mustAllow(t, e, b(kubepod.ID(2), onDisk(disks["third"], "02/12"))) // the create failed, and its disk is forgotten
	for n := range 2 {
		mustAllow(t, e, &agent.RemoveContainerRequest{ContainerId: kubepod.ID(n + 1)})
	}
	deniedFor(t, e, b(kubepod.ID(3), onDisk(disks["scratch"], "02/11"), onDisk(disks["third"], "02/12")), "scratch is disk")
	deniedFor(t, e, b(kubepod.ID(3), onDisk(disks["third"], disks["other"])), "is disk")
	mustAllow(t, e, b(kubepod.ID(3), onDisk(disks["third"], "02/12")))
}

// TestGeneratedVolumeUndo: a create that others relied on is not taken back from under them.
func TestGeneratedVolumeUndo(t *testing.T) {
	g := generate(t, gapsManifest, oneImage{}, nil)
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	mustAllow(t, e, g.request(t, "", kubepod.SandboxID))
	copyConf(t, e, kubepod.ID(1))
	undo, err := e.Begin(t.Context(), "CreateContainerRequest", requestA(t, g, kubepod.ID(1)))
	if err != nil {
		t.Fatal(err)
	}
	mustAllow(t, e, g.request(t, "b", kubepod.ID(2)))
	if err := undo(context.Background()); err == nil {
		t.Error("the disk of a container that runs was forgotten")
	}
}

// TestGeneratedSurplusFiles: what was copied for one volume does not show up in another with the same last element.
func TestGeneratedSurplusFiles(t *testing.T) {
	g := generate(t, gapsManifest, oneImage{}, nil)
	id := kubepod.ID(1)
	one, two := kubepod.SharedDir+id+"-1111111111111111-conf", kubepod.SharedDir+id+"-2222222222222222-conf"
	for name, surplus := range map[string][]proto.Message{
		"a file":                {file(one+"/..2026/y", "2")},
		"a file and its link":   {file(two+"/..2026/x", "1"), link(two+"/x", "..data/x")},
		"a link":                {link(one+"/y", "..data/y")},
		"a file of a version":   {dir(two + "/..2027"), file(two+"/..2027/x", "1")},
		"a file without a link": {file(two+"/x", "1")},
	} {
		t.Run(name, func(t *testing.T) {
			e := g.engine(t)
			mustAllow(t, e, kubepod.Sandbox())
			copyConf(t, e, id)
			for _, r := range surplus {
				mustAllow(t, e, r) // for which of the two it is shows later
			}
			deniedFor(t, e, requestA(t, g, id), "surplus")
		})
	}
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	copyConf(t, e, id)
	crossed := requestA(t, g, id)
	mountAt(crossed, "/one/conf").Source, mountAt(crossed, "/two/conf").Source = two, one
	mustDeny(t, e, crossed)
	both := requestA(t, g, id)
	mountAt(both, "/two/conf").Source = one
	mustDeny(t, e, both)
	mustAllow(t, e, requestA(t, g, id))
}
