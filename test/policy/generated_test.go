package policy_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/author/genpolicy"
	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// oneImage is every image.
type oneImage struct{}

const imageDigest = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"

func (oneImage) Image(context.Context, string, imagesource.Need) (*imagesource.Image, error) {
	return &imagesource.Image{Digest: imageDigest, Config: imagesource.Config{Entrypoint: []string{"/app"}, Env: []string{"PATH=/bin"}, WorkingDir: "/srv", StopSignal: "SIGQUIT"},
		Passwd: []byte("root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n"), Group: []byte("log:x:55:web,root\n")}, nil
}

// declared is what an honest host knows of a container: what the pod says, in the form that policy_data has it.
type declared struct {
	Name     string
	OCI      *agent.Spec
	volumes  map[string]string // of mounts that are disks, by destination
	Storages []struct {
		Volume                 string
		Driver, Source, FSType string
		MountPoint             string   `json:"mount_point"`
		DriverOptions          []string `json:"driver_options"`
		Options                []string
		FSGroup                *struct {
			GroupID uint32 `json:"group_id"`
			Policy  int32  `json:"group_change_policy"`
		} `json:"fs_group"`
		Shared bool
	}
}

var genuine = strings.NewReplacer("$(sandbox-name)", "web-bcdf-ghjkl", "$(host-name)", "web-bcdf-ghjkl", "$$", "$")

// disks is where an honest host attaches the volumes.
var disks = map[string]string{"scratch": "02/05", "other": "02/06", "third": "02/07", "data": "02/0a", "cache": "02/0b"}

// diskAt is the directory of a disk in the guest.
func diskAt(disk string) string {
	return "/run/kata-containers/sandbox/storage/" + base64.URLEncoding.EncodeToString([]byte(disk))
}

// generated is a policy made of a manifest, and what an honest host knows of the pod's containers by their names.
type generated struct {
	policy string
	pod    map[string]declared
	caps   []string
}

func (g *generated) request(t *testing.T, name, id string) *agent.CreateContainerRequest {
	t.Helper()
	return honest(t, g.pod[name], g.caps, id)
}

func (g *generated) engine(t *testing.T) *gate.Engine {
	t.Helper()
	e, err := gate.New(g.policy, gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func generate(t *testing.T, manifest string, images imagesource.Source, change func(*genpolicy.Settings)) *generated {
	t.Helper()
	set, err := kubernetes.Parse([]kubernetes.Input{{Name: "pod.yaml", Data: []byte(manifest)}}, nil, kubernetes.Options{})
	if err != nil {
		t.Fatal(err)
	}
	settings, err := genpolicy.DefaultSettings()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(settings)
	}
	r, err := genpolicy.Generate(t.Context(), set, set.Workloads[0], genpolicy.Options{Settings: settings, Rules: genpolicy.Rules(), Images: images, Namespace: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	_, data, _ := strings.Cut(r.Policy, "\npolicy_data := ")
	data = regexp.MustCompile(`"type_":`).ReplaceAllString(data, `"type":`)
	var all struct {
		Containers []declared
		Common     struct {
			DefaultCaps []string `json:"default_caps"`
		}
	}
	var mounts struct {
		Containers []struct {
			OCI struct {
				Mounts []struct{ Destination, Volume string }
			}
		}
	}
	for _, v := range []any{&all, &mounts} {
		if err := json.Unmarshal([]byte(data), v); err != nil {
			t.Fatal(err)
		}
	}
	g := &generated{policy: r.Policy, pod: map[string]declared{}, caps: all.Common.DefaultCaps}
	for i, d := range all.Containers {
		d.volumes = map[string]string{}
		for _, m := range mounts.Containers[i].OCI.Mounts {
			d.volumes[m.Destination] = m.Volume
		}
		g.pod[d.Name] = d
	}
	return g
}

// honest is the request of a runtime that does what the pod says.
func honest(t *testing.T, d declared, all []string, id string) *agent.CreateContainerRequest {
	t.Helper()
	req := &agent.CreateContainerRequest{ContainerId: id, ExecId: id, OCI: proto.Clone(d.OCI).(*agent.Spec)}
	o := req.OCI
	o.Hostname = "web-bcdf-ghjkl"
	o.Root.Path = "/run/kata-containers/" + id + "/rootfs"
	a := o.Annotations
	delete(a, "checksum/config") // containerd passes on only what it was told to
	a["io.katacontainers.pkg.oci.bundle_path"] = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id
	a["io.kubernetes.cri.sandbox-id"] = kubepod.SandboxID
	a["io.kubernetes.cri.sandbox-name"] = "web-bcdf-ghjkl"
	a["io.kubernetes.cri.sandbox-namespace"] = "shop"
	kind := a["io.kubernetes.cri.container-type"]
	if kind == "sandbox" {
		const uid = "9c64c5bf-298f-46c4-ad63-e2270a2ff44c"
		a["nerdctl/network-namespace"] = "/var/run/netns/cni-" + uid
		a["io.kubernetes.cri.sandbox-log-directory"] = "/var/log/pods/shop_web-bcdf-ghjkl_" + uid
	}
	for i, x := range o.Process.Args {
		o.Process.Args[i] = genuine.Replace(x)
	}
	for i, x := range o.Process.Env {
		o.Process.Env[i] = genuine.Replace(x)
	}
	for _, set := range []*[]string{&o.Process.Capabilities.Bounding, &o.Process.Capabilities.Effective, &o.Process.Capabilities.Permitted} {
		if len(*set) == 1 && (*set)[0] == "$(default_caps)" {
			*set = all
		}
	}
	for _, m := range o.Mounts {
		base, shared := strings.CutPrefix(m.Source, "$(sfprefix)")
		switch {
		case shared:
			m.Source = kubepod.SharedDir + id + "-0123456789abcdef-" + strings.TrimSuffix(strings.ReplaceAll(base, `\`, ""), "$")
		case m.Source == "":
			m.Source = diskAt(disks[d.volumes[m.Destination]])
		case d.volumes[m.Destination] != "": // a directory of it
			m.Source = diskAt(disks[d.volumes[m.Destination]]) + strings.TrimSuffix(m.Source[strings.LastIndex(m.Source, "+")+1:], "$")
		default:
			m.Source = strings.Trim(m.Source, "^$")
		}
	}
	for _, s := range d.Storages {
		out := &agent.Storage{Driver: s.Driver, Source: s.Source, Fstype: s.FSType, Options: s.Options, DriverOptions: s.DriverOptions, Shared: s.Shared, MountPoint: strings.Trim(s.MountPoint, "^$")}
		if s.FSGroup != nil {
			out.FsGroup = &agent.FSGroup{GroupId: s.FSGroup.GroupID, GroupChangePolicy: agent.FSGroupChangePolicy(s.FSGroup.Policy)}
		}
		if s.Driver == "" {
			out.Driver, out.Source, out.MountPoint = "blk", disks[s.Volume], diskAt(disks[s.Volume])
		}
		req.Storages = append(req.Storages, out)
	}
	source := a["io.kubernetes.cri.image-name"]
	if kind == "sandbox" {
		source = "pause"
	}
	req.Storages = append(req.Storages, &agent.Storage{Driver: "image_guest_pull", Source: source, Fstype: "overlay", MountPoint: o.Root.Path,
		DriverOptions: []string{`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"` + kind + `"}}`}})
	return req
}

// TestGeneratedPolicy lets the pod of a manifest live under its generated policy, and refuses what the manifest does not say.
func TestGeneratedPolicy(t *testing.T) {
	text, err := os.ReadFile("../../author/genpolicy/testdata/web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	g := generate(t, string(text), oneImage{}, nil)
	engine := func() *gate.Engine { return g.engine(t) }
	id := map[string]string{"": kubepod.SandboxID, "migrate": kubepod.ID(1), "proxy": kubepod.ID(2), "nginx": kubepod.ID(3)}
	create := func(name string) *agent.CreateContainerRequest {
		return g.request(t, name, id[name])
	}
	start := func(name string) *agent.StartContainerRequest {
		return &agent.StartContainerRequest{ContainerId: id[name]}
	}
	files := func(name, content string) []*agent.CopyFileRequest {
		conf := kubepod.SharedDir + id[name] + "-0123456789abcdef-"
		file := func(path string) *agent.CopyFileRequest {
			return &agent.CopyFileRequest{Path: conf + path, FileMode: 0o100644, FileSize: int64(len(content)), Data: []byte(content)}
		}
		link := func(path, to string) *agent.CopyFileRequest {
			return &agent.CopyFileRequest{Path: conf + path, FileMode: 0o120777, FileSize: int64(len(to)), Data: []byte(to)}
		}
		return []*agent.CopyFileRequest{
			{Path: conf + "conf.d", FileMode: 0o040755}, {Path: conf + "conf.d/..2026", FileMode: 0o040755}, file("conf.d/..2026/default.conf"),
			link("conf.d/..data", "..2026"), link("conf.d/default.conf", "..data/default.conf"), file("one.conf"),
		}
	}
	// until lets the pod live up to a moment.
	until := func(e *gate.Engine, moment string) {
		for _, step := range []struct {
			name string
			do   func()
		}{
			{"sandbox", func() { mustAllow(t, e, kubepod.Sandbox()); mustAllow(t, e, create("")); mustAllow(t, e, start("")) }},
			{"migrate", func() { mustAllow(t, e, create("migrate")); mustAllow(t, e, start("migrate")) }},
			{"migrated", func() {
				if err := e.Exited(t.Context(), id["migrate"], 0); err != nil {
					t.Fatal(err)
				}
			}},
			{"proxy", func() { mustAllow(t, e, create("proxy")); mustAllow(t, e, start("proxy")) }},
			{"files", func() {
				for _, f := range files("nginx", "server {}\n") {
					mustAllow(t, e, f)
				}
			}},
			{"nginx", func() { mustAllow(t, e, create("nginx")); mustAllow(t, e, start("nginx")) }},
		} {
			if step.name == moment {
				return
			}
			step.do()
		}
	}
	e := engine()
	until(e, "")
	mustAllow(t, e, &agent.SignalProcessRequest{ContainerId: id["nginx"], Signal: 3})
	for name, tc := range map[string]struct {
		moment string
		req    proto.Message
	}{
		"proxy before migrate ended": {"migrated", create("proxy")},
		"nginx without proxy":        {"proxy", create("nginx")},
		"nginx without its files":    {"files", create("nginx")},
		"other content":              {"files", files("nginx", "server { }")[2]},
		"a file more": {"files", &agent.CopyFileRequest{Path: kubepod.SharedDir + id["nginx"] + "-0123456789abcdef-conf.d/..2026/more.conf",
			FileMode: 0o100644, FileSize: 1, Data: []byte("x")}},
		"a file through a link": {"nginx", &agent.CopyFileRequest{Path: kubepod.SharedDir + id["nginx"] + "-0123456789abcdef-conf.d/..data/default.conf",
			FileMode: 0o100644, FileSize: 10, Data: []byte("server {}\n")}},
		"a mask over a file": {"nginx", func() proto.Message {
			r := create("nginx")
			r.OCI.Linux.MaskedPaths = append(r.OCI.Linux.MaskedPaths, "/etc/nginx/conf.d/default.conf")
			return r
		}()},
		"a mask through a process": {"nginx", func() proto.Message {
			r := create("nginx")
			r.OCI.Linux.MaskedPaths = append(r.OCI.Linux.MaskedPaths, "/proc/1/root/etc/passwd")
			return r
		}()},
		"pause in place of an image": {"nginx", func() proto.Message {
			r := create("nginx")
			for _, s := range r.Storages {
				s.DriverOptions = []string{`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":"sandbox"}}`}
			}
			return r
		}()},
		"another image": {"nginx", func() proto.Message {
			r := create("nginx")
			for _, s := range r.Storages {
				s.Source = strings.ReplaceAll(s.Source, imageDigest, strings.ReplaceAll(imageDigest, "c", "d"))
			}
			return r
		}()},
		"another program": {"nginx", func() proto.Message { r := create("nginx"); r.OCI.Process.Args[0] = "/bin/sh"; return r }()},
		"another variable": {"nginx", func() proto.Message {
			r := create("nginx")
			r.OCI.Process.Env = append(r.OCI.Process.Env, "LD_PRELOAD=/x")
			return r
		}()},
		"root":           {"nginx", func() proto.Message { r := create("nginx"); r.OCI.Process.User.UID = 0; return r }()},
		"a signal":       {"", &agent.SignalProcessRequest{ContainerId: id["nginx"], Signal: 1}},
		"logs":           {"", &agent.SetPolicyRequest{Policy: "package agent_policy"}},
		"a second nginx": {"", g.request(t, "nginx", kubepod.ID(9))},
	} {
		e := engine()
		until(e, tc.moment)
		if err := ask(e, tc.req); err == nil {
			t.Errorf("%s: allowed", name)
		}
	}
}
