package cri

import "testing"

func TestAnnotations(t *testing.T) {
	for _, c := range []struct {
		a       Annotations
		kind    Kind
		sandbox string
		bad     bool
	}{
		{nil, KindSingle, "", false},
		{Annotations{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "s"}, KindSandbox, "s", false},
		{Annotations{"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "s"}, KindContainer, "s", false},
		{Annotations{"io.kubernetes.docker.type": "podsandbox", "io.kubernetes.sandbox.id": "s"}, KindSandbox, "s", false},
		{Annotations{"io.kubernetes.cri.container-type": "virtual"}, KindSingle, "", true},
	} {
		kind, err := c.a.Classify()
		if kind != c.kind || kind != c.a.Kind() || c.a.SandboxID() != c.sandbox || (err != nil) != c.bad {
			t.Errorf("%v: %s in %q, %v", c.a, kind, c.a.SandboxID(), err)
		}
	}
}
