package genpolicy

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/wire/initdata"
)

// TestCorpus has manifests in the shapes of well-known charts. Each is accepted, or refused for the reasons in the golden
// list; what is accepted gets its annotations in place.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/corpus/*.yaml")
	if err != nil || len(files) < 100 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	var out strings.Builder
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		pods, warnings, err := judge(t, file)
		if err == nil {
			fmt.Fprintf(&out, "%s: accepted, %d\n", name, pods)
		} else {
			fmt.Fprintf(&out, "%s: refused\n", name)
			var ps kubernetes.Problems
			if !errors.As(err, &ps) {
				t.Fatal(err)
			}
			for _, p := range ps {
				fmt.Fprintf(&out, "  %s\n", strings.TrimPrefix(p.String(), "testdata/corpus/"))
			}
		}
		for _, w := range warnings {
			fmt.Fprintf(&out, "  warning: %s\n", strings.TrimPrefix(w.String(), "testdata/corpus/"))
		}
	}
	golden(t, "corpus.golden", []byte(out.String()))
}

func judge(t *testing.T, file string) (pods int, warnings kubernetes.Problems, err error) {
	t.Helper()
	in, err := kubernetes.Read(nil, file)
	if err != nil {
		t.Fatal(err)
	}
	in[0].Name = filepath.ToSlash(in[0].Name)
	set, err := kubernetes.Parse(in, nil, kubernetes.Options{})
	var problems kubernetes.Problems
	if err != nil && !errors.As(err, &problems) {
		t.Fatal(err)
	}
	for _, w := range set.Workloads {
		o := Options{Settings: settings(t), Images: images, Rules: "package agent_policy"}
		r, err := Generate(t.Context(), set, w, o)
		var more kubernetes.Problems
		if err != nil && !errors.As(err, &more) {
			t.Fatal(err)
		}
		problems = append(problems, more...)
		warnings = append(warnings, r.Warnings...)
		if err != nil {
			continue
		}
		dataOf(t, r.Policy)
		err = w.SetAnnotation(initdata.Annotation, "H4sI+/=")
		for _, p := range r.Pins {
			err = errors.Join(err, w.SetImage(p.Container, p.Image))
		}
		if err != nil {
			problems = append(problems, w.Problem(nil, "", "%v", err))
		}
	}
	if len(problems) == 0 {
		if _, err := set.Files[0].Text(); err != nil {
			problems = append(problems, kubernetes.Problem{File: in[0].Name, Message: err.Error()})
		}
	}
	return len(set.Workloads), warnings, problems.Err()
}
