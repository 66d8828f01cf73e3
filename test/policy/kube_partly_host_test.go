package policy_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	guestagent "github.com/cloister/cloister/guest/agent"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/share"
	"github.com/cloister/cloister/host/volume"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// publishAll writes a version of a volume as the kubelet does.
func publishAll(t *testing.T, dir, stamp string, files map[string]string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		check(os.MkdirAll(filepath.Dir(filepath.Join(dir, stamp, name)), 0o755))
		check(os.WriteFile(filepath.Join(dir, stamp, name), []byte(text), 0o644))
	}
	old, _ := os.Readlink(dir + "/..data")
	check(os.Symlink(stamp, dir+"/..data_tmp"))
	check(os.Rename(dir+"/..data_tmp", dir+"/..data"))
	for name := range files {
		first, _, _ := strings.Cut(name, "/")
		if _, err := os.Lstat(filepath.Join(dir, first)); err != nil {
			check(os.Symlink("..data/"+first, filepath.Join(dir, first)))
		}
	}
	if old != "" {
		check(os.RemoveAll(filepath.Join(dir, old)))
	}
}

// TestGeneratedPartlyKnownVolumeOfHost: what the host's side copies of a volume with a token passes the policy, in the beginning and when the
// token is renewed; a change of what is known does not reach the container.
func TestGeneratedPartlyKnownVolumeOfHost(t *testing.T) {
	needs.Root(t, "giving files to their owners")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	g := generate(t, strings.Replace(partlyManifest, "UNKNOWN", partlyToken, 1), oneImage{}, nil)
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	layout := guestagent.DefaultLayout()
	layout.Root = t.TempDir()
	guest := guestagent.New(guestagent.Config{Log: slog.New(slog.DiscardHandler), Layout: layout})
	inGuest := func(p string) string {
		return filepath.Join(layout.Root, "shared/containers", strings.TrimPrefix(p, share.GuestDir))
	}
	type answer struct {
		path, target string
		err          error
	}
	answers := make(chan answer, 4096)
	c := runtimeconfig.Default()
	c.Sandbox.TEE = "snp"
	set, err := volume.New(volume.Options{Dir: t.TempDir() + "/volumes", SandboxID: "s", Config: &c,
		CopyFile: func(ctx context.Context, r *agent.CopyFileRequest) error {
			a := answer{path: r.GetPath(), target: string(r.GetData()), err: ask(e, r)}
			if a.err == nil {
				r.Path = inGuest(r.GetPath())
				_, a.err = guest.CopyFile(ctx, r)
			}
			answers <- a
			return a.err
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := set.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	// until waits for the answer to a request.
	until := func(name, target string) error {
		t.Helper()
		for {
			select {
			case <-ctx.Done():
				t.Fatalf("no request for %s", name)
			case a := <-answers:
				if strings.HasSuffix(a.path, name) && (target == "" || a.target == target) {
					return a.err
				}
				if a.err != nil {
					t.Fatalf("%s: %v", a.path, a.err)
				}
			}
		}
	}
	const uid = "2f1c9a52-7b0e-4d1c-9a56-0c8f3f4f9d10"
	dir := t.TempDir() + "/pods/" + uid + "/volumes/kubernetes.io~projected/some"
	publishAll(t, dir, "..0", map[string]string{"mode": "hi", "sub/x": "world", "keys/token": "one"})
	id := kubepod.ID(1)
	create := g.request(t, "a", id)
	p, err := set.Container(ctx, volume.Request{ID: id, Spec: &specs.Spec{
		Root: &specs.Root{}, Annotations: map[string]string{"io.kubernetes.cri.image-name": "i"},
		Mounts: []specs.Mount{{Destination: "/etc/some", Type: "bind", Source: dir, Options: []string{"rbind", "ro"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	mountAt(create, "/etc/some").Source = p.Mounts[0].Source
	mustAllow(t, e, create)
	shows := func(name, want string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(inGuest(p.Mounts[0].Source), name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
	shows("keys/token", "one")
	publishAll(t, dir, "..1", map[string]string{"mode": "hi", "sub/x": "world", "keys/token": "two"})
	if err := until("/..data", "..1"); err != nil {
		t.Fatal(err)
	}
	shows("keys/token", "two")
	shows("sub/x", "world")
	publishAll(t, dir, "..2", map[string]string{"mode": "ho", "sub/x": "world", "keys/token": "three"})
	if err := until("/..2/mode", ""); err == nil {
		t.Error("a change of a known file is taken")
	}
	shows("mode", "hi")
	shows("keys/token", "two")
}
