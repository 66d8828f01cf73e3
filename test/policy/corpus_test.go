package policy_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cloister/cloister/author/genpolicy"
	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/test/kubepod"
)

// corpusImages has every image that is not missing.
type corpusImages struct{}

func (corpusImages) Image(_ context.Context, ref string, _ imagesource.Need) (*imagesource.Image, error) {
	if strings.Contains(ref, "missing") {
		return nil, errors.New("there is no such image")
	}
	img := &imagesource.Image{Digest: imageDigest, Config: imagesource.Config{Entrypoint: []string{"/bin/app"}, Env: []string{"PATH=/bin"}},
		Passwd: []byte("root:x:0:0::/:/bin/sh\n"), Group: []byte("root:x:0:\nwheel:x:10:root\n")}
	if _, digest, ok := strings.Cut(ref, "@"); ok {
		img.Digest = digest
	}
	return img, nil
}

// TestCorpusLives lets the pods of all manifests of the corpus live under their policies: an honest host is never refused.
func TestCorpusLives(t *testing.T) {
	files, err := filepath.Glob("../../author/genpolicy/testdata/corpus/*.yaml")
	if err != nil || len(files) < 100 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	var lived atomic.Int32
	t.Cleanup(func() {
		if n := lived.Load(); n < 100 {
			t.Errorf("%d pods have lived", n)
		}
	})
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			t.Parallel()
			in, err := kubernetes.Read(nil, file)
			if err != nil {
				t.Fatal(err)
			}
			set, err := kubernetes.Parse(in, nil, kubernetes.Options{})
			if err != nil {
				return // the corpus's own test says why
			}
			for _, w := range set.Workloads {
				settings, err := genpolicy.DefaultSettings()
				if err != nil {
					t.Fatal(err)
				}
				r, err := genpolicy.Generate(t.Context(), set, w, genpolicy.Options{Settings: settings, Rules: genpolicy.Rules(), Images: corpusImages{}})
				if err == nil {
					live(t, r.Policy)
					lived.Add(1)
				}
			}
		})
	}
}

// live is the life of a pod, in the order of its containers.
func live(t *testing.T, policy string) {
	h, containers := newAnyHost(t, policy)
	h.ask("CreateSandboxRequest", kubepod.Object{"sandbox_id": kubepod.SandboxID})
	rank := map[string]int{"pause": 0, "init": 1, "sidecar": 1, "container": 2}
	slices.Reverse(containers[1:]) // init containers stand there from the last to the first
	slices.SortStableFunc(containers, func(a, b corpusContainer) int { return cmp.Compare(rank[a.Kind], rank[b.Kind]) })
	for i := range containers {
		c, id := &containers[i], kubepod.SandboxID
		if c.Kind != "pause" {
			id = kubepod.ID(i)
		}
		h.files(c, id)
		create := h.create(c, id)
		h.ask("CreateContainerRequest", create)
		h.ask("StartContainerRequest", kubepod.Object{"container_id": id})
		process := create["OCI"].(kubepod.Object)["Process"].(kubepod.Object)
		for n, words := range c.ExecCommands {
			h.ask("ExecProcessRequest", kubepod.Object{"container_id": id, "exec_id": fmt.Sprintf("exec-%d", n), "process": kubepod.Object{"Args": words,
				"Env": process["Env"], "Cwd": process["Cwd"], "User": process["User"], "NoNewPrivileges": process["NoNewPrivileges"], "Terminal": process["Terminal"]}})
		}
		for _, signal := range c.Signals {
			h.ask("SignalProcessRequest", kubepod.Object{"container_id": id, "signal": signal})
		}
		if c.Kind == "init" {
			if err := h.e.Exited(t.Context(), id, 0); err != nil {
				t.Error(err)
			}
			h.ask("RemoveContainerRequest", kubepod.Object{"container_id": id})
		}
	}
}
