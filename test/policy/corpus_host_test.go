package policy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/policyinput"
)

// anyHost is an honest host with nothing but a policy's data: it asks for what the data say of a pod, whatever pod that is.
type anyHost struct {
	t         testing.TB
	e         *gate.Engine
	pod, node string
	cpath     string
	caps      map[string]any
	disks     map[string]string // of volumes
}

type corpusContainer struct {
	Name, Kind   string
	Image        *struct{ Reference string }
	SandboxPidns bool           `json:"sandbox_pidns"`
	OCI          map[string]any `json:"OCI"`
	Storages     []kubepod.Object
	Devices      []kubepod.Object
	ExecCommands [][]string        `json:"exec_commands"`
	Cluster      map[string]string `json:"cluster_values"`
	Signals      []int
	Files        []struct {
		Destination string
		Entries     map[string]struct{ SHA256 string }
	}
}

func newAnyHost(t testing.TB, policy string) (*anyHost, []corpusContainer) {
	t.Helper()
	_, text, _ := strings.Cut(policy, "\npolicy_data := ")
	var data struct {
		Containers []corpusContainer
		Common     map[string]any
	}
	if err := json.Unmarshal([]byte(text), &data); err != nil {
		t.Fatal(err)
	}
	e, err := gate.New(policy, gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	h := &anyHost{t: t, e: e, node: "worker-1", disks: map[string]string{}, caps: data.Common, cpath: "/run/kata-containers/shared/containers"}
	h.pod = h.sample(annotationsOf(data.Containers[0])["io.kubernetes.cri.sandbox-name"].(string))
	return h, data.Containers
}

func annotationsOf(c corpusContainer) map[string]any { return c.OCI["Annotations"].(map[string]any) }

// sample is a text that an expression describes.
func (h *anyHost) sample(pattern string) string {
	h.t.Helper()
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		h.t.Fatal(err)
	}
	var b strings.Builder
	var walk func(*syntax.Regexp)
	walk = func(r *syntax.Regexp) {
		switch r.Op {
		case syntax.OpLiteral:
			b.WriteString(string(r.Rune))
		case syntax.OpCharClass:
			b.WriteRune(r.Rune[0])
		case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
			b.WriteByte('x')
		case syntax.OpRepeat:
			for range max(r.Min, 1) {
				walk(r.Sub[0])
			}
		case syntax.OpPlus, syntax.OpCapture:
			walk(r.Sub[0])
		case syntax.OpAlternate:
			walk(r.Sub[0])
		case syntax.OpConcat:
			for _, s := range r.Sub {
				walk(s)
			}
		}
	}
	walk(re)
	if !regexp.MustCompile(pattern).MatchString(b.String()) {
		h.t.Fatalf("%q is no sample of %s", b.String(), pattern)
	}
	return b.String()
}

func (h *anyHost) ask(kind string, request any) {
	h.t.Helper()
	md := agent.File_wire_agent_agent_proto.Messages().ByName(protoreflect.Name(kind))
	text, err := json.Marshal(request)
	if err != nil {
		h.t.Fatal(err)
	}
	var plain any
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&plain); err != nil {
		h.t.Fatal(err)
	}
	full, err := policyinput.Complete(md, plain)
	if err == nil {
		err = h.e.Judge(h.t.Context(), kind, full)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// filled is a text of the policy as the cluster makes it.
func (h *anyHost) filled(c *corpusContainer, text string) string {
	for name, pattern := range c.Cluster {
		text = strings.ReplaceAll(text, "$(cluster:"+name+")", h.sample(pattern))
	}
	return strings.NewReplacer("$(sandbox-name)", h.pod, "$(sandbox-namespace)", "shop", "$(host-name)", h.pod, "$(node-name)", h.node,
		"$(pod-uid)", "9c64c5bf-298f-46c4-ad63-e2270a2ff44c", "$(pod-ip)", "10.1.2.3", "$(host-ip)", "192.0.2.1", "$(pod-ips)", "10.1.2.3,fd00:1::3",
		"$(host-ips)", "192.0.2.1", "$(resource-field)", "2", "$(todo-annotation)", "x=y\n").Replace(text)
}

// place is a path of the policy as this container has it.
func (h *anyHost) place(source, id string) string {
	if !strings.HasPrefix(source, "^") && !strings.Contains(source, "$(") {
		return source
	}
	source = strings.NewReplacer("$(sfprefix)", h.cpath+"/"+id+"-0123456789abcdef-", "$(cpath)", h.cpath, "$(bundle-id)", id, "$(sandbox-id)", kubepod.SandboxID).Replace(source)
	if strings.HasPrefix(source, "$(root_path)") {
		return "/run/kata-containers/" + id + "/rootfs"
	}
	return h.sample(source)
}

func (h *anyHost) disk(volume string) string {
	if _, ok := h.disks[volume]; !ok {
		h.disks[volume] = fmt.Sprintf("02/%02x", len(h.disks)+1)
	}
	return h.disks[volume]
}

// files copies what the policy knows of the container's volumes.
func (h *anyHost) files(c *corpusContainer, id string) {
	h.t.Helper()
	for _, f := range c.Files {
		if len(f.Entries) == 0 {
			continue
		}
		root := h.place(h.mount(c, f.Destination)["source"].(string), id)
		for below, entry := range f.Entries {
			path := strings.TrimSuffix(root+"/"+below, "/")
			err := h.e.Judge(h.t.Context(), "CopyFileRequest", kubepod.Object{"path": path, "file_type": "Regular", "file_mode": 0o100644, "data_sha256": entry.SHA256,
				"symlink_target": nil, "file_size": 1, "dir_mode": 0, "uid": 0, "gid": 0, "offset": 0})
			if err != nil {
				h.t.Errorf("%s: %v", c.Name, err)
			}
		}
	}
}

func (h *anyHost) mount(c *corpusContainer, destination string) kubepod.Object {
	for _, m := range c.OCI["Mounts"].([]any) {
		if m := m.(map[string]any); m["destination"] == destination {
			return m
		}
	}
	h.t.Fatalf("%s: no mount at %s", c.Name, destination)
	return nil
}

// create is the request that makes the container.
func (h *anyHost) create(c *corpusContainer, id string) kubepod.Object {
	h.t.Helper()
	process, annotations := c.OCI["Process"].(map[string]any), kubepod.Object{}
	for k, v := range annotationsOf(*c) {
		annotations[k] = v
	}
	for k, v := range map[string]string{"io.katacontainers.pkg.oci.bundle_path": "/run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id,
		"io.kubernetes.cri.sandbox-id": kubepod.SandboxID, "io.kubernetes.cri.sandbox-name": h.pod} {
		annotations[k] = v
	}
	if annotations["io.kubernetes.cri.sandbox-namespace"] == "" {
		annotations["io.kubernetes.cri.sandbox-namespace"] = "shop"
	}
	if c.Kind == "pause" {
		annotations["nerdctl/network-namespace"] = h.sample(annotations["nerdctl/network-namespace"].(string))
		log := strings.NewReplacer("$(sandbox-name)", h.pod, "$(sandbox-namespace)", annotations["io.kubernetes.cri.sandbox-namespace"].(string))
		annotations["io.kubernetes.cri.sandbox-log-directory"] = h.sample(log.Replace(annotations["io.kubernetes.cri.sandbox-log-directory"].(string)))
	}
	var args, env []string
	for _, x := range process["Args"].([]any) {
		args = append(args, strings.ReplaceAll(h.filled(c, x.(string)), "$$", "$"))
	}
	for _, x := range process["Env"].([]any) {
		env = append(env, h.filled(c, x.(string)))
	}
	capabilities := kubepod.Object{}
	for name, list := range process["Capabilities"].(map[string]any) {
		capabilities[name] = list
		if l := list.([]any); len(l) == 1 && strings.HasSuffix(l[0].(string), "_caps)") {
			capabilities[name] = h.caps[strings.Trim(l[0].(string), "$()")]
		}
	}
	var mounts, storages, devices []kubepod.Object
	for _, m := range c.OCI["Mounts"].([]any) {
		m := m.(map[string]any)
		source, volume := m["source"].(string), fmt.Sprint(m["volume"])
		switch {
		case source == "":
			source = diskAt(h.disk(volume))
		case m["volume"] != nil:
			source = diskAt(h.disk(volume)) + strings.TrimPrefix(h.sample(source), "/run/kata-containers/sandbox/storage/-")
		default:
			source = h.place(source, id)
		}
		mounts = append(mounts, kubepod.Object{"destination": m["destination"], "type_": m["type_"], "options": m["options"], "source": source})
	}
	for _, s := range c.Storages {
		out := kubepod.Object{}
		for k, v := range s {
			out[k] = v
		}
		delete(out, "volume")
		if volume, ok := s["volume"].(string); ok {
			out["driver"], out["source"], out["mount_point"] = "blk", h.disk(volume), diskAt(h.disk(volume))
		} else {
			out["mount_point"] = h.place(s["mount_point"].(string), id)
		}
		storages = append(storages, out)
	}
	source := "pause"
	if c.Image != nil {
		source = c.Image.Reference
	}
	kind := annotations["io.kubernetes.cri.container-type"]
	root := h.place(c.OCI["Root"].(map[string]any)["Path"].(string), id)
	storages = append(storages, kubepod.Object{"driver": "image_guest_pull", "source": source, "fstype": "overlay", "mount_point": root,
		"driver_options": []string{fmt.Sprintf(`image_guest_pull={"metadata":{"io.kubernetes.cri.container-type":%q}}`, kind)}})
	for i, d := range c.Devices {
		if strings.HasPrefix(d["container_path"].(string), "/dev/vfio") { // plugged from the start
			annotations[fmt.Sprintf("cdi.k8s.io/vfio%d", i)] = fmt.Sprintf("nvidia.com/gpu=%d", i)
			continue
		}
		devices = append(devices, kubepod.Object{"id": "d", "type_": "blk", "vm_path": "", "container_path": d["container_path"], "options": []string{}})
	}
	linux := kubepod.Object{"Resources": kubepod.Object{"CPU": kubepod.Object{"Shares": 2}}}
	for k, v := range c.OCI["Linux"].(map[string]any) {
		linux[k] = v
	}
	linux["Namespaces"] = append(slices.Clone(linux["Namespaces"].([]any)), map[string]any{"Type": "network", "Path": kubepod.NetNS})
	user := process["User"]
	return kubepod.Object{"container_id": id, "exec_id": id, "sandbox_pidns": c.SandboxPidns, "devices": devices, "storages": storages, "OCI": kubepod.Object{
		"Version": "1.1.0", "Hostname": h.pod, "Annotations": annotations, "Mounts": mounts, "Linux": linux,
		"Root": kubepod.Object{"Path": root, "Readonly": c.OCI["Root"].(map[string]any)["Readonly"]},
		"Process": kubepod.Object{"Args": args, "Env": env, "Cwd": process["Cwd"], "User": user, "Terminal": process["Terminal"],
			"NoNewPrivileges": process["NoNewPrivileges"], "Capabilities": capabilities},
	}}
}
