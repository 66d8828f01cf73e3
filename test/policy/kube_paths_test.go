package policy_test

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	guestagent "github.com/cloister/cloister/guest/agent"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// TestKubernetesBoundPaths: a path that is written in another way is the same file for the guest, so it must be for the rules.
func TestKubernetesBoundPaths(t *testing.T) {
	data, web := boundPod()
	id := kubepod.ID(1)
	conf, one := kubepod.SharedDir+id+"-0123456789abcdef-conf", kubepod.SharedDir+id+"-0123456789abcdef-one.txt"
	start := func(t *testing.T) *gate.Engine {
		e := kubeEngine(t, data)
		mustAllow(t, e, kubepod.Sandbox())
		for _, r := range boundCopies(conf, one) {
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

// boundPod is a pod whose container has a volume and a single file of known content.
func boundPod() (kubepod.Object, *kubepod.Container) {
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
	return ours(kubepod.Data(p, web)), web
}

func boundCopies(conf, one string) []*agent.CopyFileRequest {
	return []*agent.CopyFileRequest{dir(conf), dir(conf + "/..2026"), file(conf+"/..2026/mode", "hi"), link(conf+"/..data", "..2026"), link(conf+"/mode", "..data/mode"), file(one, "hi")}
}

// TestBoundPathsInTheGuest writes paths in many ways. What the rules let through and the guest carries out leaves the bound files alone.
func TestBoundPathsInTheGuest(t *testing.T) {
	data, _ := boundPod()
	id := kubepod.ID(1)
	conf, one := kubepod.SharedDir+id+"-0123456789abcdef-conf", kubepod.SharedDir+id+"-0123456789abcdef-one.txt"
	layout := guestagent.DefaultLayout()
	guestRoot := layout.Root
	layout.Root = t.TempDir()
	guest := guestagent.New(guestagent.Config{Gate: gate.NewOpen(gate.Options{}), Log: slog.New(slog.DiscardHandler), Layout: layout})
	inGuest := func(r *agent.CopyFileRequest) error {
		r = proto.CloneOf(r)
		r.Path, r.Uid, r.Gid = strings.Replace(r.Path, guestRoot, layout.Root, 1), int32(os.Getuid()), int32(os.Getgid())
		_, err := guest.CopyFile(t.Context(), r)
		return err
	}
	e := kubeEngine(t, data)
	mustAllow(t, e, kubepod.Sandbox())
	for _, r := range boundCopies(conf, one) {
		mustAllow(t, e, r)
		if err := inGuest(r); err != nil {
			t.Fatal(err)
		}
	}
	look := func() string {
		var all strings.Builder
		for _, volume := range []string{conf, one} {
			if err := filepath.WalkDir(strings.Replace(volume, guestRoot, layout.Root, 1), func(p string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), "..") { // an empty version is allowed
					return err
				}
				text, _ := os.ReadFile(p)
				to, _ := os.Readlink(p)
				fmt.Fprintf(&all, "%q %v %q %q\n", p, d.Type(), text, to)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		return all.String()
	}
	before, admitted, done := look(), 0, 0
	for _, target := range []string{one, conf, conf + "/mode", conf + "/..data", conf + "/..2026/mode", conf + "/new"} {
		for _, odd := range []string{"", "/", "//", "/.", "/./", "/..", "/../", "\n", "\r", "\n/", "/\n", "\x00", "\u2028", " ", "\\", "/x", "/\nx", "%2f", ".", "..", "\x7f"} {
			for at := len(kubepod.SharedDir) - 1; at <= len(target); at++ {
				if at < len(target) && target[at] != '/' {
					continue
				}
				path := target[:at] + odd + target[at:]
				for _, r := range []*agent.CopyFileRequest{file(path, "evil"), dir(path), link(path, "evil")} {
					if ask(e, r) != nil {
						continue
					}
					admitted++
					if inGuest(r) != nil {
						continue
					}
					done++
					if after := look(); after != before {
						t.Fatalf("%q of mode %#o changes\n%sto\n%s", path, r.FileMode, before, after)
					}
				}
			}
		}
	}
	t.Logf("%d paths are admitted, the guest takes %d", admitted, done)
	if done == 0 {
		t.Error("nothing was tried")
	}
}
