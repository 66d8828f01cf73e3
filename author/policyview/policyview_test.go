package policyview

import (
	"fmt"
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
  "common": {"default_caps": ["CAP_KILL", "CAP_CHOWN"], "privileged_caps": ["CAP_KILL", "CAP_CHOWN", "CAP_SYS_ADMIN"]},
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
		"A pod of 2 containers", "name       web\n", "(pause)", "the guest's own pause program", "web, container", "nginx:1, bound by digest sha256:aa",
		"variables  PASSWORD A", "cluster    $(cluster:DB_PORT) is any text that fits (?:[0-9]{1,5})", "1:2", "/etc/conf read-only, configMap conf, one file bound by digest", "/data read-write, may be left out, content chosen by the host",
		"/var/lib/db read-write, may be left out, volume of the image, made in the guest for each container",
		"a layer of the host, by verity root: abcd (sealed)", "optional   variables that the host may leave out: A IP POD",
		"/scratch read-write, disk of the host for the volume scratch alone, encrypted", "/plain read-write, may be left out, disk of the host for the volume plain alone, not",
		"directory of the disk of the host for the volume scratch alone, encrypted", "add variables to any container that fit one of 2 patterns",
		"choose how much memory", "other: the host may leave out variables and mounts", "other: the host chooses which of its 2 disks",
		`/bin/check "now and then"`, "signals    15", "restarts   never", "can        read what containers print", "cannot     write to the standard input",
		"run in any container: /bin/date", "reach port 8080", "always     DestroySandboxRequest", "never      SetPolicyRequest",
		"may        all capabilities: it is privileged", "run time   IP: the host chooses", "user       1:2\n", "directory  /srv", "privileges no new ones",
		"node       written by the host, which may leave them out: /etc/hosts", "/dev/shm read-write, may be left out, memory of the guest",
		"/kept read-write, may be left out, kept by the guest", "/shared read-write, may be left out, shared directory, content chosen by the host",
		"web: it is privileged", "web: the host chooses the content of /data", "projected some, one file bound by digest, content of ca token chosen by the host",
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
	if err := p.Page(&b, PageOptions{Values: true, Full: true}); err != nil || !strings.Contains(b.String(), "PASSWORD=swordfish") {
		t.Errorf("values are not shown when asked for (%v)", err)
	}
	if !strings.Contains(b.String(), "layer of the host, number 1, bound by verity root abcd at byte 4096, sealed with kbs:///a/b/c") {
		t.Errorf("layers are not shown when asked for: %s", b.String())
	}
}

// TestPageOfMany: what most containers of a pod have is said once, and what one has in another way with that one.
func TestPageOfMany(t *testing.T) {
	var list []string
	node := `{"destination": "/etc/hosts", "type_": "bind", "source": "$(sfprefix)hosts$", "options": ["rw"]}`
	shm := `{"destination": "/dev/shm", "type_": "bind", "source": "/run/kata-containers/sandbox/shm", "options": ["rbind"]}`
	for i := range 20 {
		caps, env, uid, mounts := `["$(default_caps)"]`, `"A=1", "B=2"`, "0", node+","+shm
		switch i {
		case 3:
			caps = `["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_ADMIN"]`
		case 4:
			env = `"A=other", "C=3"`
		case 5:
			uid = "7"
		case 6:
			mounts = strings.Replace(node, "rw", "ro", 1)
		case 7, 8:
			mounts += `,{"destination": "/data", "type_": "bind", "source": "$(sfprefix)data$", "options": ["rw"]}`
		case 9:
			caps = `["$(privileged_caps)"]`
		case 10:
			caps = `["CAP_CHOWN", "CAP_SETUID"]`
		case 11:
			caps = `[]`
		}
		if i < 19 {
			mounts += `,{"destination": "/conf", "type_": "bind", "source": "$(sfprefix)conf$", "options": ["ro"]}`
		}
		list = append(list, fmt.Sprintf(`{"name": "c%d", "OCI": {"Process": {"Args": ["/run", "%d"], "Env": [%s], "Cwd": "/", "User": {"UID": %s}, "Capabilities": {"Bounding": %s}}, "Mounts": [%s]}}`,
			i, i, env, uid, caps, mounts))
	}
	text := rules + `policy_data := {"containers": [` + strings.Join(list, ",") + `], "common": {"default_caps": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
	"privileged_caps": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_ADMIN", "CAP_SYS_ADMIN"]}, "request_defaults": {"CreateContainerRequest": {}}}`
	p := view(t, text)
	var b strings.Builder
	if err := p.Page(&b, PageOptions{}); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for part, n := range map[string]int{
		"default    capabilities: CHOWN KILL SETUID\n": 1, "All containers, where they do not say otherwise\n": 1, "user       0:0": 1, "/dev/shm read-write, memory": 1,
		"may        the default capabilities\n": 1, "variables  A B\n": 1, "leave them out: /etc/hosts\n": 1,
		"c0\n  runs       /run 0\n\nc1\n":                                                              1, // nothing else
		"c3\n  runs       /run 3\n  may        the default capabilities and NET_ADMIN\n\n":             1,
		"c4\n  runs       /run 4\n  variables  A C\n  without    what the others have of these: B\n\n": 1,
		"c5\n  runs       /run 5\n  user       7:0\n\n":                                                1,
		"c6\n  runs       /run 6\n  node       written by the host, which may leave them out: /etc/hosts (read-only)\n  without    what the others have of these: /dev/shm\n\n": 1,
		"  mounts     /data read-write, content chosen by the host\n": 2,
		"may        all capabilities: it is privileged":               1,
		"may        the default capabilities without KILL":            1,
		"may        nothing that takes a capability":                  1,
		"- all containers: the host may leave out":                    1, "- c7, c8: the host chooses the content of /data\n": 1, "- c9: it is privileged": 1,
		"- all containers but c19: the host chooses the content of /conf": 1, "without    what the others have of these: /conf\n": 1,
	} {
		if got := strings.Count(page, part); got != n {
			t.Errorf("%q is there %d times, want %d", part, got, n)
		}
	}
	if n := strings.Count(page, "\n"); n > 120 {
		t.Errorf("the page has %d lines", n)
	}
	if t.Failed() {
		t.Log(page)
	}
}

func TestPodName(t *testing.T) {
	const suffix = "[bcdfghjklmnpqrstvwxz2456789]+"
	for pattern, want := range map[string]string{
		"^web$": "web", `^web\.one-` + suffix + "-" + suffix + "$": "web.one-*-*, * is what Kubernetes adds", "^db-[0-9]+$": "db-*, * is what Kubernetes adds",
		"^job(-[0-9]+)?-" + suffix + "$": "job*-*, * is what Kubernetes adds", "^(a|b)$": "^(a|b)$", "^x[0-9]$": "^x[0-9]$", "plain": "plain", "^a.*$": "^a.*$",
	} {
		if got := podName(pattern); got != want {
			t.Errorf("%s: %q, want %q", pattern, got, want)
		}
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
