package policyview

import (
	"os"
	"slices"
	"strings"
	"testing"
)

const rules = "package agent_policy\nimport rego.v1\ndefault SetPolicyRequest := false\ndefault DestroySandboxRequest := true\n" +
	"default CreateContainerRequest := false\nCreateContainerRequest if input.x == 1\n"

const dataText = `
policy_data := {
  "containers": [
    {"OCI": {"Annotations": {"io.kubernetes.cri.sandbox-name": "^web$"}, "Process": {"Args": ["/pause"], "User": {"UID": 65535, "GID": 65535}}, "Root": {"Readonly": true}}},
    {"name": "web", "kind": "container", "exec_commands": [["/bin/check", "now and then"]], "signals": [15], "restarts": false,
     "image": {"reference": "nginx:1", "digest": "sha256:aa", "by_tag": false},
     "files": [{"destination": "/etc/hosts", "kind": "runtime", "bound": false}, {"destination": "/etc/conf", "volume": "conf", "kind": "configMap", "bound": true, "entries": {"a": {"sha256": "11"}}},
       {"destination": "/some", "volume": "some", "kind": "projected", "bound": false, "entries": {"a": {"sha256": "11"}}, "free": {"any": false, "paths": ["ca", "token"]}},
       {"destination": "/any", "volume": "any", "kind": "projected", "bound": false, "entries": {"a": {"sha256": "11"}}, "free": {"any": true, "paths": []}}],
     "cluster_values": {"DB_PORT": "(?:[0-9]{1,5})"}, "required_env": ["PASSWORD"], "required_mounts": ["/etc/conf", "/scratch"],
     "storages": [{"driver": "erofs-verity-layer", "options": ["X-kata.partition-number=1", "X-kata.dmverity.roothash=abcd", "X-kata.dmverity.hashoffset=4096", "X-cloister.sealed.key-id=kbs:///a/b/c"]},
                  {"driver": "", "volume": "scratch", "driver_options": ["encryption_key=ephemeral"]}],
     "OCI": {"Process": {"Args": ["/bin/serve", "\u001b[2J"], "Env": ["PASSWORD=swordfish", "A=1", "IP=at $(pod-ip)", "POD=$(sandbox-name)"], "Cwd": "/srv", "NoNewPrivileges": true, "User": {"UID": 1, "GID": 2}, "Capabilities": {"Bounding": ["$(privileged_caps)"]}},
       "Mounts": [{"destination": "/etc/conf", "type_": "bind", "source": "$(sfprefix)conf$", "options": ["ro"]},
                  {"destination": "/some", "type_": "bind", "source": "$(sfprefix)some$", "options": ["ro"]},
                  {"destination": "/any", "type_": "bind", "source": "$(sfprefix)any$", "options": ["ro"]},
                  {"destination": "/data", "type_": "bind", "source": "$(sfprefix)data$", "options": ["rw"]},
                  {"destination": "/var/lib/db", "type_": "bind", "source": "^$(cpath)/$(bundle-id)-imagevolume[0-9]{5}-db$", "options": ["rw"]},
                  {"destination": "/part", "type_": "bind", "source": "^/run/x/[a-z]+/part$", "options": ["rw"], "volume": "scratch"},
                  {"destination": "/etc/hosts", "type_": "bind", "source": "$(sfprefix)hosts$", "options": ["rw"]},
                  {"destination": "/dev/shm", "type_": "bind", "source": "/run/kata-containers/sandbox/shm", "options": ["rw"]},
                  {"destination": "/tmp", "type_": "bind", "source": "^/run/kata-containers/sandbox/ephemeral/tmp$", "options": ["rw"]},
                  {"destination": "/kept", "type_": "local", "source": "^$(cpath)/$(sandbox-id)/rootfs/local/kept$", "options": ["rw"]},
                  {"destination": "/shared", "type_": "bind", "source": "^$(cpath)/sandbox-[0-9a-f]{16}-shared$", "options": ["rw"]},
                  {"destination": "/plain", "type_": "bind", "source": "", "options": ["rw"], "volume": "plain"},
                  {"destination": "/scratch", "type_": "bind", "source": "", "options": ["rw"], "volume": "scratch"}]}},
    {"name": "other", "OCI": {"Mounts": [{"destination": "/a", "type_": "bind", "source": ""}, {"destination": "/b", "type_": "bind", "source": ""}]}}
  ],
  "common": {"default_caps": ["CAP_KILL", "CAP_CHOWN"]},
  "request_defaults": {"CreateContainerRequest": {"allow_env_regex": ["^A=", "^B="]}, "ReadStreamRequest": true, "WriteStreamRequest": false, "ExecProcessRequest": {"allowed_commands": [["/bin/date"]], "regex": []},
    "PortForwardRequest": {"allowed_ports": [8080]}}
}
`

func view(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPage(t *testing.T) {
	p := view(t, rules+dataText)
	var b strings.Builder
	if err := p.Page(&b, PageOptions{}); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, want := range []string{
		"A pod of 3 containers", "^web$", "(pause)", "the guest's own pause program", "web, container", "nginx:1, bound by digest sha256:aa",
		"variables  PASSWORD A", "cluster    $(cluster:DB_PORT) is any text that fits (?:[0-9]{1,5})", "1:2", "/etc/conf read-only, configMap conf, 1 files bound by digest", "/data read-write, may be left out, content chosen by the host",
		"/var/lib/db read-write, may be left out, volume of the image, made in the guest for each container",
		"layer of the host, number 1, bound by verity root abcd at byte 4096, sealed with kbs:///a/b/c", "optional   A IP POD: the host may leave",
		"/scratch read-write, disk of the host for the volume scratch alone, encrypted", "/plain read-write, may be left out, disk of the host for the volume plain alone, not",
		"directory of the disk of the host for the volume scratch alone, encrypted", "add variables to any container that fit one of 2 patterns",
		"choose how much memory", "other: the host may leave out variables and mounts", "other: the host chooses which of its 2 disks",
		`/bin/check "now and then"`, "signals    15", "restarts   never", "can        read what containers print", "cannot     write to the standard input",
		"run in any container: /bin/date", "reach port 8080", "always     DestroySandboxRequest", "never      SetPolicyRequest",
		"web: it is privileged", "may        all capabilities", "usual      capabilities of containers are CAP_KILL CAP_CHOWN",
		"run time   IP: the host chooses", "user       1:2 in /srv, no new privileges", "/etc/hosts read-write, may be left out, of the node, content chosen by the host",
		"/dev/shm /tmp read-write, may be left out, memory of the guest", "/kept read-write, may be left out, kept by the guest",
		"/shared read-write, may be left out, shared directory, content chosen by the host", "web: the host chooses the content of /data", "projected some, 1 files bound by digest, content of ca token chosen by the host",
		"web: the host chooses the content of ca token in /some", "web: the host chooses the content of all others in /any",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, never := range []string{"swordfish", "\x1b", "the content of /etc/conf", "the content of /var/lib/db", "web: the host may leave out", "pause): the host may"} {
		if strings.Contains(page, never) {
			t.Errorf("the page has %q", never)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
	b.Reset()
	if err := p.Page(&b, PageOptions{Values: true}); err != nil || !strings.Contains(b.String(), "PASSWORD=swordfish") {
		t.Errorf("values are not shown when asked for (%v)", err)
	}
}

func TestPageOfRulesAlone(t *testing.T) {
	p := view(t, "package agent_policy\ndefault AllowRequestsFailingPolicy = true\ndefault SetPolicyRequest = true\ndefault CreateContainerRequest = true\n")
	var b strings.Builder
	if err := p.Page(&b, PageOptions{}); err != nil || !strings.Contains(b.String(), "no policy_data") {
		t.Errorf("got %v, %s", err, b.String())
	}
	if got := p.Warnings(); len(got) != 3 || !strings.Contains(got[0], "insecure") {
		t.Errorf("got %q", got)
	}
}

func TestDiff(t *testing.T) {
	before := view(t, rules+dataText)
	if d := Diff(before, view(t, rules+dataText)); len(d) != 0 {
		t.Errorf("a policy differs from itself: %v", d)
	}
	changed := strings.NewReplacer("swordfish", "hunter2", `"/data"`, `"/var/data"`, `"allowed_ports": [8080]`, `"allowed_ports": [8080, 22]`, `"signals": [15]`, `"signals": [9, 15]`).Replace(dataText)
	lines := Lines(Diff(before, view(t, strings.Replace(rules, "default SetPolicyRequest := false", "default SetPolicyRequest := true", 1)+changed)), false)
	for _, want := range []string{
		"+ containers.web.OCI.Mounts./var/data: source $(sfprefix)data$ (4 members)", "- containers.web.OCI.Mounts./data: source $(sfprefix)data$ (4 members)", "~ containers.web.OCI.Process.Env.PASSWORD: PASSWORD=(not shown) -> PASSWORD=(not shown)",
		"+ request_defaults.PortForwardRequest.allowed_ports: 22", "+ containers.web.signals.9: 9", "+ always.SetPolicyRequest: true", "- never.SetPolicyRequest: true",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the differences lack %q", want)
		}
	}
	for _, l := range lines {
		if strings.Contains(l, "swordfish") || strings.Contains(l, "hunter2") {
			t.Errorf("a value is shown: %s", l)
		}
	}
	if t.Failed() {
		t.Log(strings.Join(lines, "\n"))
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"", "package other", "package agent_policy\nx :=", "package agent_policy\npolicy_data := {\"containers\": 7}", strings.Repeat("#", MaxSize+1)} {
		if _, err := Parse(text); err == nil {
			t.Errorf("%.40q is accepted", text)
		}
	}
}

// What is wrong is said without the text that it is wrong in.
func TestParseFaultsAreShort(t *testing.T) {
	_, err := Parse("package agent_policy\n\nx := " + strings.Repeat("]", 100_000) + "\n")
	if err == nil || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "line 3: ") {
		t.Errorf("got %.1200v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(rules + dataText)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		var b strings.Builder
		if err := p.Page(&b, PageOptions{Values: true}); err != nil {
			t.Fatal(err)
		}
		if d := Diff(p, p); len(d) != 0 {
			t.Fatal(d)
		}
	})
}

func TestACI(t *testing.T) {
	raw, err := os.ReadFile("../aci/testdata/group.rego")
	if err != nil {
		t.Fatal(err)
	}
	p := view(t, string(raw))
	var b strings.Builder
	if err := p.Page(&b, PageOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"A container group of Azure Container Instances", "fragment   containers and fragments from mcr.microsoft.com/aci/aci-cc-infra-fragment", "\nprepare\n",
		"runs       /bin/prepare data in ", "layer      1111", "mount      /scratch read-write", "can        environment variable dropping", "cannot     dump stacks", "pause-container",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(b.String(), "/usr/local/sbin") {
		t.Error("a value is shown")
	}
	changed := strings.NewReplacer("\"data\"", "\"other\"", "allow_dump_stacks := false", "allow_dump_stacks := true", "PATH=/usr/local/sbin:", "PATH=/evil:").Replace(string(raw))
	q := view(t, changed)
	lines := Lines(Diff(p, q), false)
	for _, want := range []string{"~ allow_dump_stacks: false -> true", `~ containers.prepare.command.1: "data" -> "other"`} {
		if !slices.Contains(lines, want) {
			t.Errorf("the differences lack %q: %q", want, lines)
		}
	}
	if strings.Contains(strings.Join(lines, "\n"), "/evil") || !slices.Contains(q.Warnings(), "insecure: allow_dump_stacks") {
		t.Errorf("got %q and %q", lines, q.Warnings())
	}
	open := view(t, "package policy\napi_version := \"0.10.0\"\nmount_device := {\"allowed\": true}\ncreate_container := {\"allowed\": true, \"env_list\": null}\n")
	if got := open.Warnings(); len(got) != 2 || got[0] != "insecure: create_container is allowed whatever is asked" {
		t.Errorf("got %q", got)
	}
	if t.Failed() {
		t.Log(b.String())
	}
}

func TestDiffOfLists(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for name, c := range map[string]struct{ old, new, want string }{
		"a word":    {`["a", "b"]`, `["a", "c"]`, `~ l.1: "b" -> "c"`},
		"one more":  {`["a", "b"]`, `["x", "a", "b"]`, `+ l: "x"`},
		"one less":  {`["a", "b", "b"]`, `["a", "b"]`, `- l: "b"`},
		"order":     {`["a", "b"]`, `["b", "a"]`, `~ l: the same in another order`},
		"a member":  {`[{"source": "/a", "x": 1}, {"source": "/b", "x": 1}]`, `[{"source": "/a", "x": 1}, {"source": "/b", "x": 2}]`, `~ l.1.x: 1 -> 2`},
		"an object": {`[{"source": "/a", "x": 1}]`, `[{"source": "/a", "x": 1}, {"source": "/b", "x": 1}]`, `+ l: source /b (2 members)`},
		"long":      {`[]`, `["` + long + `"]`, `+ l: "` + long[:maxShown-1] + `… (1002 bytes)`},
		"others":    {`["a", "b"]`, `["b", "c"]`, "- l: \"a\"\n+ l: \"c\""},
	} {
		t.Run(name, func(t *testing.T) {
			text := func(l string) string { return rules + "\npolicy_data := {\"l\": " + l + "}\n" }
			if got := strings.Join(Lines(Diff(view(t, text(c.old)), view(t, text(c.new))), false), "\n"); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}
