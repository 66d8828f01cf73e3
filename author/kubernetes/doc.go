// Package kubernetes reads manifests as kubectl, helm and kustomize write them, and finds the pods in them.
//
// A file keeps its text: what is changed (an annotation, an image's digest) is changed at its position, so that comments,
// order and formatting stay. Each change is checked by reading the result again and comparing it with what was meant.
//
// Every field of a pod is one of three: known and used, harmless (it does not reach the guest, or does not matter there),
// or not supported. The last are reported all at once, each with file, line and path.
package kubernetes
