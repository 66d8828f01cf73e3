package main

import (
	"fmt"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/wire/initdata"
)

// maxAnnotations is what Kubernetes takes in all annotations of an object, names and values, in bytes: TotalAnnotationSizeLimitB of its
// package validation.
const maxAnnotations = 256 << 10

// tooLarge says what will not take the workload with this value of the initdata annotation; "" if all do.
func tooLarge(w *kubernetes.Workload, value string) string {
	size := len(initdata.Annotation) + len(value)
	for k, v := range w.Template.Annotations {
		if k != initdata.Annotation {
			size += len(k) + len(v)
		}
	}
	switch {
	case size > maxAnnotations:
		return fmt.Sprintf("the annotations of %s would have %d bytes, and Kubernetes takes %d: give containers ConfigMaps as files, not as variables, or make several pods of it",
			w.Object(), size, maxAnnotations)
	case w.Kind == "Pod" && 2*size > maxAnnotations:
		return fmt.Sprintf("the annotations of %s have %d bytes, of which `kubectl apply` makes a copy in one more, and Kubernetes takes %d: use `kubectl apply --server-side`",
			w.Object(), size, maxAnnotations)
	}
	return ""
}
