// Package manifest turns a pod that author/kubernetes has read into a launch plan: the exact requests that start the pod in its
// guest by `cloister run`.
//
// Parse takes one Pod with its ConfigMaps and Secrets, and is stricter than the reader: what Cloister does not honour without a
// cluster is a problem that names the field, and nothing that changes what runs is skipped silently (fields.go). All problems are
// reported at once, each with its line. Plan resolves images to digests and writes the requests. Both are deterministic: the
// requests become policy, and the policy is measured.
package manifest

import (
	"errors"
	"slices"
	"unicode/utf8"

	"github.com/cloister/cloister/author/kubernetes"
)

// Manifest is one pod with the ConfigMaps and Secrets that it refers to.
type Manifest struct {
	Pod *kubernetes.Workload
	// Warnings are facts that the user should know but that are no errors.
	Warnings []string

	set *kubernetes.Set
}

// Source is a text with manifests.
type Source = kubernetes.Input

// Parse reads one pod and the objects it needs from one or more texts. The error is of type kubernetes.Problems and has all of them.
func Parse(sources ...Source) (*Manifest, error) {
	set, err := kubernetes.Parse(sources, nil, kubernetes.Options{Kinds: []string{"Pod", "ConfigMap", "Secret"}, Fields: fields})
	var problems kubernetes.Problems
	if err != nil && !errors.As(err, &problems) {
		return nil, err
	}
	if len(set.Workloads) == 0 {
		if len(problems) == 0 {
			p := kubernetes.Problem{Message: "there is no document of kind Pod"}
			if len(sources) > 0 {
				p.File = sources[0].Name
			}
			problems = append(problems, p)
		}
		return nil, problems.Err()
	}
	for _, w := range set.Workloads[1:] {
		problems = append(problems, w.Fault("", "a second Pod; one run starts one pod"))
	}
	m := &Manifest{Pod: set.Workloads[0], set: set, Warnings: set.Warnings}
	c := checker{manifest: m, problems: problems}
	c.pod()
	if err := c.problems.Err(); err != nil {
		return nil, err
	}
	slices.Sort(m.Warnings)
	m.Warnings = slices.Compact(m.Warnings)
	return m, nil
}

// printable reports whether s can be an environment variable.
func printable(s string) bool {
	return utf8.ValidString(s) && !slices.Contains([]byte(s), 0)
}
