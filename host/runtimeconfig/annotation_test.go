package runtimeconfig

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cloister/cloister/wire/initdata"
)

func TestAnnotations(t *testing.T) {
	e, err := load(t, "[annotations]\nenabled = [\"sandbox.vcpus\", \"sandbox.memory_mib\", \"guest.kernel_params\", \"network.model\", "+
		"\"network.vhost\", \"timeouts.create_container\", \"initdata\", \"policy\", \"policy-fragments\"]\n[guest]\nkernel_params = \"a=1\"\n")
	if err != nil {
		t.Fatal(err)
	}
	doc := initdata.EncodeAnnotation([]byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"x\"\n"))
	got, err := e.Annotated(map[string]string{
		KataPrefix + "hypervisor.default_vcpus": "2.5",
		ShortPrefix + "memory-mib":              "4096", KataPrefix + "hypervisor.default_memory": "4096",
		KataPrefix + "hypervisor.kernel_params": "b=2", ShortPrefix + "kernel-params": "b=2",
		KataPrefix + "runtime.internetworking_model": "macvtap",
		KataPrefix + "hypervisor.disable_vhost_net":  "true", KataPrefix + "runtime.create_container_timeout": "90",
		initdata.Annotation: doc, KataPrefix + "agent.policy": base64.StdEncoding.EncodeToString([]byte("package x")),
		ShortPrefix + "policy-fragments": base64.StdEncoding.EncodeToString([]byte("one")) + ", " + base64.StdEncoding.EncodeToString([]byte("two")),
		"io.kubernetes.cri.sandbox-id":   "x", "example.com/other": "\x00", "io.katacontainers.pkg.oci.container_type": "pod_sandbox",
	})
	if err != nil {
		t.Fatal(err)
	}
	c := got.Config
	if c.Sandbox.VCPUs != 2.5 || c.Sandbox.MemoryMiB != 4096 || c.Guest.KernelParams != "a=1 b=2" || c.Network.Model != "macvtap" ||
		c.Network.Vhost || c.Timeouts.CreateContainer.Seconds() != 90 || len(got.Initdata) == 0 || string(got.Policy) != "package x" ||
		len(got.Fragments) != 2 || string(got.Fragments[1]) != "two" {
		t.Errorf("%+v", c)
	}
	if s := got.Source("sandbox.vcpus").String(); s != "annotation "+KataPrefix+"hypervisor.default_vcpus" {
		t.Errorf("the source is %s", s)
	}
	if e.Config.Sandbox.VCPUs != 1 || e.Source("sandbox.vcpus").Kind != KindDefault {
		t.Error("the annotations of one pod changed the configuration of all")
	}
}

func TestAnnotationsRefused(t *testing.T) {
	e, err := load(t, "[sandbox]\nmax_vcpus = 8\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, value, says string }{
		{KataPrefix + "hypervisor.default_vcpus", "9", "is 9, want at most sandbox.max_vcpus"},
		{KataPrefix + "hypervisor.default_vcpus", "1e3", "is \"1e3\", want a number"},
		{KataPrefix + "hypervisor.default_vcpus", "NaN", "want a number"},
		{KataPrefix + "hypervisor.default_vcpus", "-1", "want a number"},
		{KataPrefix + "hypervisor.default_vcpus", "", "want a number"},
		{KataPrefix + "hypervisor.default_memory", "99999999999999999999", "want a whole number"},
		{KataPrefix + "hypervisor.default_memory", "0x1000", "want a whole number"},
		{KataPrefix + "hypervisor.default_memory", "64", "want a whole number from 128"},
		{KataPrefix + "hypervisor.kernel_params", "init=/bin/sh", "is not enabled on this node"},
		{KataPrefix + "hypervisor.path", "/bin/sh", "is not enabled"},
		{KataPrefix + "hypervisor.invented", "1", "is not supported"},
		{"io.katacontainers.container.resource.swappiness", "1", "is not supported"},
		{ShortPrefix + "tee", "none", "is not supported (hint"},
		{ShortPrefix + "vcpu", "2", `is not supported, did you mean "cloister.dev/vcpus"? (hint`},
		{KataPrefix + "hypervisor.default_memroy", "2", `did you mean "io.katacontainers.config.hypervisor.default_memory"?`},
		{ShortPrefix + strings.Repeat("v", 300), "2", "is not supported (hint"},
		{ShortPrefix + "vcpus\n\x1b[2J", "1", `\x1b`},
		{KataPrefix + "runtime.create_container_timeout", "0", "want a duration"},
		{KataPrefix + "runtime.create_container_timeout", "9999999999999", "whole number of seconds"},
		{ShortPrefix + "create-timeout", "90", "want a duration such as"},
		{ShortPrefix + "vcpus", strings.Repeat("1", maxText+1), "want at most 4096"},
		{initdata.Annotation, "x", "is not initdata"},
		{ShortPrefix + "policy", "%", "want a policy in base64"},
		{ShortPrefix + "policy", "", "want a policy in base64"},
		{ShortPrefix + "policy-fragments", "", "want signed policy fragments"},
		{ShortPrefix + "policy-fragments", "AAAA,%", "want signed policy fragments"},
		{ShortPrefix + "policy-fragments", strings.Repeat("AAAA,", 32) + "AAAA", "want at most 32"},
	} {
		_, err := e.Annotated(map[string]string{tc.name: tc.value})
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%q = %.40q: error %v, want one with %q", tc.name, tc.value, err, tc.says)
		} else if strings.ContainsAny(err.Error(), "\x1b\x00") {
			t.Errorf("the error has control characters: %q", err)
		}
	}
	_, err = e.Annotated(map[string]string{ShortPrefix + "vcpus": "1", KataPrefix + "hypervisor.default_vcpus": "2"})
	if err == nil || !strings.Contains(err.Error(), "want the same, or one of them") {
		t.Errorf("two values: %v", err)
	}
	got, err := e.Annotated(map[string]string{ShortPrefix + "create-timeout": "1m30s", KataPrefix + "runtime.create_container_timeout": "90"})
	if err != nil || got.Config.Timeouts.CreateContainer.Seconds() != 90 {
		t.Errorf("two names and one value: %v", err)
	}
	_, err = e.Annotated(map[string]string{ShortPrefix + "vcpus": "x", ShortPrefix + "memory-mib": "y"})
	if err == nil || !strings.Contains(err.Error(), "vcpus") || !strings.Contains(err.Error(), "memory-mib") {
		t.Errorf("not every fault is reported: %v", err)
	}
}

func TestAnnotatedPaths(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/ok/vmlinuz", "k")
	write(t, dir+"/secret", "s")
	if err := os.Symlink(dir+"/secret", dir+"/ok/link"); err != nil {
		t.Fatal(err)
	}
	e, err := load(t, "[annotations]\nenabled = [\"guest.kernel\", \"vmm.path\"]\nvalid_guest_paths = [\""+dir+"/ok/*\"]\n")
	if err != nil {
		t.Fatal(err)
	}
	const name = KataPrefix + "hypervisor.kernel"
	if got, err := e.Annotated(map[string]string{name: dir + "/ok/vmlinuz"}); err != nil || got.Config.Guest.Kernel != dir+"/ok/vmlinuz" {
		t.Errorf("an allowed file: %v", err)
	}
	for value, says := range map[string]string{
		dir + "/ok/../secret": "without \"..\"", dir + "/secret": "that the node allows", dir + "/ok/link": "which leads to",
		dir + "/ok/none": "a file that is there", "vmlinuz": "absolute path", "": "absolute path",
	} {
		if _, err := e.Annotated(map[string]string{name: value}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error %v, want one with %q", value, err, says)
		}
	}
	if _, err := e.Annotated(map[string]string{KataPrefix + "hypervisor.path": "/bin/sh"}); err == nil || !strings.Contains(err.Error(),
		"none are") {
		t.Errorf("a VMM that no pattern allows: %v", err)
	}
}

// TestPodCannotUndoProtection: what a file may not say for a confidential sandbox, a pod may not either, even when it is enabled.
func TestPodCannotUndoProtection(t *testing.T) {
	e, err := load(t, "[sandbox]\ntee = \"snp\"\n[annotations]\nenabled = [\"storage.shared_fs\"]\n")
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.Annotated(map[string]string{KataPrefix + "hypervisor.shared_fs": "virtio-fs"})
	if err == nil || !strings.Contains(err.Error(), "storage.shared_fs (annotation ") {
		t.Errorf("error %v", err)
	}
}

func TestSupportedIsWhatIsFound(t *testing.T) {
	c := Default()
	a := annotator{all: settings()}
	for _, s := range c.Supported() {
		if s.Key == keyInitdata || s.Key == keyPolicy || s.Key == keyFragments {
			continue
		}
		if found, _ := a.find(s.Name); found == nil || found.key != s.Key {
			t.Errorf("%s is listed and not found", s.Name)
		}
	}
}

func FuzzAnnotated(f *testing.F) {
	e, err := build(nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	e.Config.Annotations.Enabled = byPods()
	f.Add("io.katacontainers.\x00"+strings.Repeat("0", 107), "x") // as long when it is quoted and cut
	for _, a := range e.Config.Supported() {
		f.Add(a.Name, "1")
		f.Add(a.Name, "true")
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		got, err := e.Annotated(map[string]string{name: value})
		if err != nil {
			if strings.ContainsAny(err.Error(), "\x1b\x00\x07") {
				t.Errorf("the error has control characters: %q", err)
			}
			return
		}
		if !reflect.DeepEqual(got.Config.Annotations, e.Config.Annotations) || got.Config.Sandbox.TEE != TEENone {
			t.Error("an annotation changed what pods may do")
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Example()))
	f.Add([]byte(kataSNP))
	f.Add([]byte("a = { b = [ { c = 1 } ] }\n\"x.y\".z = 1"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		leaves, err := parse(raw, "f", KindFile)
		if err != nil {
			return
		}
		for _, l := range leaves {
			if l.src.Line < 1 || len(l.path) == 0 {
				t.Errorf("%+v has no position", l)
			}
		}
		if e, err := build(leaves, nil); err == nil && len(e.Values()) != len(settings()) {
			t.Error("values are missing")
		}
	})
}
