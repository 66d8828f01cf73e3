package main

import (
	"net"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/testregistry"
)

// TestImageRegistries has registries that do not do what is asked of them: the hint is about them, and not about a broker.
func TestImageRegistries(t *testing.T) {
	f := newFolder(t)
	f.write(t, "key", strings.Repeat("k", 32))
	r, err := testregistry.Start(testregistry.Options{User: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for source, want := range map[string]string{
		nobody + "/a:1":               "hint: is the registry running",
		r.Addr() + "/app:1":           "hint: credentials are docker's: `docker login " + r.Addr() + "`",
		"10.1.2.3:5000/a:1":           "registry 10.1.2.3:5000 could be spoken to in plain HTTP, which nobody has allowed\ncloister: hint: allow it by --insecure-registry 10.1.2.3:5000",
		"registry.localhost:5000/a:1": "hint: allow it by --insecure-registry registry.localhost:5000",
		"oci:nowhere":                 "opening oci:nowhere: ",
	} {
		out := f.run(t, exitRefused, "image", "seal", "--key", "key", "--key-id", "kbs:///default/image-key/a", source, "oci:out")
		if !strings.Contains(out, want) || strings.Contains(out, "broker") {
			t.Errorf("%s: %s, want %q", source, out, want)
		}
	}
	// What is allowed for one of the two registries is for that one.
	out := f.run(t, exitRefused, "image", "seal", "--insecure-registry", "192.168.0.1", "--key", "key", "--key-id", "kbs:///default/image-key/a", "192.168.0.2/in:1", "192.168.0.1/out:1")
	if !strings.Contains(out, "hint: allow it by --insecure-registry 192.168.0.2") {
		t.Errorf("got %s", out)
	}
	out = f.run(t, exitRefused, "image", "seal", "--insecure-registry", f.registry, "--key", "key", "--key-id", "kbs:///default/image-key/a", f.registry+"/app:1", "192.168.0.1/out:1")
	if !strings.Contains(out, "hint: allow it by --insecure-registry 192.168.0.1") {
		t.Errorf("got %s", out)
	}
}
