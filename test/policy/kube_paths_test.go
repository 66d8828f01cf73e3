package policy_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// TestKubernetesBoundPaths: a path that is written in another way is the same file for the guest, so it must be for the rules.
func TestKubernetesBoundPaths(t *testing.T) {
	const hi = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"
	web := kubepod.Workload("web", kubepod.SharedMount("/etc/app/conf", "rbind", "rprivate", "ro"), kubepod.SharedMount("/etc/app/one.txt", "rbind", "rprivate", "ro"))
	web.Entry["image"] = image(kubepod.DigestOne)
	web.Entry["files"] = []kubepod.Object{
		{"destination": "/etc/app/conf", "base": "conf", "volume": "conf", "kind": "configMap", "single": false, "bound": true,
			"entries": kubepod.Object{"mode": kubepod.Object{"sha256": hi, "size": 2}}},
		{"destination": "/etc/app/one.txt", "base": "one.txt", "volume": "one", "kind": "secret", "single": true, "bound": true,
			"entries": kubepod.Object{"": kubepod.Object{"sha256": hi, "size": 2}}},
	}
	p := kubepod.Pause()
	p.Entry["image"] = nil
	id := kubepod.ID(1)
	conf, one := kubepod.SharedDir+id+"-0123456789abcdef-conf", kubepod.SharedDir+id+"-0123456789abcdef-one.txt"
	start := func(t *testing.T) *gate.Engine {
		e := kubeEngine(t, ours(kubepod.Data(p, web)))
		mustAllow(t, e, kubepod.Sandbox())
		for _, r := range []proto.Message{dir(conf), dir(conf + "/..2026"), file(conf+"/..2026/mode", "hi"), link(conf+"/..data", "..2026"), link(conf+"/mode", "..data/mode"), file(one, "hi")} {
			mustAllow(t, e, r)
		}
		return e
	}
	for name, r := range map[string]*agent.CopyFileRequest{
		"file with a slash at its end":      file(one+"/", "ho"),
		"volume with a slash at its end":    file(conf+"/", "ho"),
		"file in it with a slash":           file(conf+"/..2026/mode/", "ho"),
		"link with a slash":                 link(conf+"/mode/", "..data/other"),
		"name with a line break":            file(conf+"/a\nb.conf", "ho"),
		"directory with a line break":       dir(conf + "/a\n"),
		"line break in a version":           file(conf+"/..2026/\nevil.conf", "ho"),
		"line break, then a slash":          file(conf+"/x\n/", "ho"),
		"zero byte":                         file(conf+"/x\x00", "ho"),
		"link with a line break":            link(conf+"/x\ny", "mode"),
		"current directory":                 file(conf+"/.", "ho"),
		"current directory with a slash":    file(conf+"/./", "ho"),
		"two slashes":                       file(conf+"//", "ho"),
		"directory above, and a line break": file(conf+"/\n/../x", "ho"),
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			mustDeny(t, e, r)
			mustAllow(t, e, web.Request(id))
		})
	}
}
