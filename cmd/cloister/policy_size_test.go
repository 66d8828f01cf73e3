package main

import (
	"strings"
	"testing"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/wire/initdata"
)

func TestTooLarge(t *testing.T) {
	for _, tc := range []struct {
		kind          string
		value, others int
		want          string
	}{
		{"Pod", 100_000, 0, ""},
		{"Pod", 100_000, 40_000, "--server-side"},
		{"Deployment", 100_000, 40_000, ""},
		{"Deployment", maxAnnotations - len(initdata.Annotation), 0, ""},
		{"Deployment", maxAnnotations - len(initdata.Annotation) + 1, 0, "would have 262145 bytes"},
		{"Deployment", 200_000, 70_000, "Kubernetes takes 262144"},
	} {
		w := &kubernetes.Workload{Kind: tc.kind, Meta: kubernetes.Metadata{Name: "big"}}
		w.Template.Annotations = map[string]string{initdata.Annotation: strings.Repeat("x", 300_000)} // which the new value replaces
		if tc.others > 0 {
			w.Template.Annotations["x"] = strings.Repeat("x", tc.others-1)
		}
		if got := tooLarge(w, strings.Repeat("x", tc.value)); (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}
