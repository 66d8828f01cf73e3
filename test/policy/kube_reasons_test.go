package policy_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// TestKubernetesReasons has the denials that owners of pods meet most: their events say what was got and what the policy has.
func TestKubernetesReasons(t *testing.T) {
	const hi = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"
	web := kubepod.Workload("web", kubepod.SharedMount("/etc/app/conf", "rbind", "rprivate", "ro"))
	web.Entry["image"] = image(kubepod.DigestOne)
	web.Entry["files"] = []kubepod.Object{
		{"destination": "/etc/app/conf", "base": "conf", "volume": "conf", "kind": "configMap", "single": false, "bound": true, "entries": kubepod.Object{
			"mode": kubepod.Object{"sha256": hi, "size": 2, "mode": 420}}},
	}
	web.Process()["Env"] = append(web.Process()["Env"].([]string), "WHERE=default")
	web.Env = append(web.Env, "WHERE=default")
	p := kubepod.Pause()
	p.Entry["image"] = nil
	e := kubeEngine(t, ours(kubepod.Data(p, web)))
	mustAllow(t, e, kubepod.Sandbox())
	id := kubepod.ID(1)
	conf := kubepod.SharedDir + id + "-0123456789abcdef-conf"
	for _, r := range []proto.Message{dir(conf), dir(conf + "/..1")} {
		mustAllow(t, e, r)
	}
	denied(t, ask(e, file(conf+"/..1/mode", "ho")), []string{`data_sha256: got "`, `expected "` + hi + `"`}, []string{"undefined", "mixed_bases"})
	for _, r := range []proto.Message{file(conf+"/..1/mode", "hi"), link(conf+"/..data", "..1"), link(conf+"/mode", "..data/mode")} {
		mustAllow(t, e, r)
	}
	r := web.Request(id)
	r.OCI.Process.Env[2] = "MODE=debugging"
	denied(t, ask(e, r), []string{`closest is container "web"`, "MODE", "another_value"}, []string{"debugging", "production"})
	mustAllow(t, e, web.Request(id))
	mustAllow(t, e, &agent.StartContainerRequest{ContainerId: id})
	denied(t, ask(e, dir(conf+"/..2")), []string{"volume_in_use"}, []string{"undefined", "mixed_bases"})
	denied(t, ask(e, &agent.ExecProcessRequest{ContainerId: id, ExecId: "x", Process: &agent.Process{Args: []string{"id"}, Env: web.Env, Cwd: "/", NoNewPrivileges: true,
		User: web.Request(id).OCI.Process.User}}), []string{"defaults.ExecProcessRequest"}, []string{"not shown)s"})
}
