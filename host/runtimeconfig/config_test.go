package runtimeconfig

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// load reads text as a file of its own, with drop-ins given as name and text.
func load(t *testing.T, text string, dropIns ...string) (*Effective, error) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "runtime.toml")
	write(t, file, text)
	for i := 0; i+1 < len(dropIns); i += 2 {
		write(t, filepath.Join(dir, "config.d", dropIns[i]), dropIns[i+1])
	}
	return Load(Request{File: file})
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestExample: the annotated example is valid, is the default, and shows every key once in the order of the settings.
func TestExample(t *testing.T) {
	e, err := load(t, Example())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(e.Config, Default()) {
		t.Errorf("the example is not the default:\n%+v\n%+v", e.Config, Default())
	}
	for _, v := range e.Values() {
		if v.Source.Kind != KindFile || v.Source.Line == 0 {
			t.Errorf("the example lacks %s", v.Key)
		}
	}
}

// TestEveryFieldHasASetting: no field of the configuration is out of reach, and no two settings share one.
func TestEveryFieldHasASetting(t *testing.T) {
	c := Default()
	seen := map[any]string{}
	keys := map[string]string{}
	for _, s := range settings() {
		p := s.field(&c)
		if other, there := seen[p]; there {
			t.Errorf("%s and %s have the same field", s.key, other)
		}
		seen[p] = s.key
		for _, f := range s.kata {
			if other, there := keys["file "+f.name]; there {
				t.Errorf("%s and %s have the same Kata key %s", s.key, other, f.name)
			}
			keys["file "+f.name] = s.key
		}
		for _, f := range s.notes {
			if other, there := keys["note "+f.name]; there {
				t.Errorf("%s and %s have the same annotation %s", s.key, other, f.name)
			}
			keys["note "+f.name] = s.key
			if f.as != nil && f.as.text == nil {
				t.Errorf("%s: annotation %s has no way to be read", s.key, f.name)
			}
		}
	}
	v := reflect.ValueOf(&c).Elem()
	for i := range v.NumField() {
		for j := range v.Field(i).NumField() {
			if _, there := seen[v.Field(i).Field(j).Addr().Interface()]; !there {
				t.Errorf("no setting for %s.%s", v.Type().Field(i).Name, v.Field(i).Type().Field(j).Name)
			}
		}
	}
}

func TestFaults(t *testing.T) {
	for _, tc := range []struct{ text, says string }{
		{"[sandbox]\nvcpu = 1\n", `runtime.toml:2: unknown key "sandbox.vcpu", did you mean "sandbox.vcpus"?`},
		{"tee = \"snp\"\n", `runtime.toml:1: unknown key "tee", did you mean "sandbox.tee"?`},
		{"[timeout]\nboots = \"3m\"\n", `unknown key "timeout.boots", did you mean "timeouts.boot"?`},
		{"[sandbox]\nqueues = 1\n", `did you mean "network.queues"?`},
		{"[sandbox]\ntee = \"sgx\"\n", `runtime.toml:2: sandbox.tee is "sgx", want one of none, auto, tpm`},
		{"x = 1\n", `:1: unknown key "x"`},
		{"[sandbox]\nvcpus = \"2\"\n", `sandbox.vcpus is "2", want a number from 0.01 to 1024`},
		{"[sandbox]\nvcpus = nan\n", "sandbox.vcpus is NaN"},
		{"[sandbox]\nvcpus = -1\n", "sandbox.vcpus is -1"},
		{"[sandbox]\nmemory_mib = 9223372036854775807\n", "want a whole number from 128 to 16777216"},
		{"[sandbox]\nmemory_mib = 1.5\n", "sandbox.memory_mib is 1.5"},
		{"[sandbox]\nmemory_mib = 127\n", "sandbox.memory_mib is 127"},
		{"[sandbox]\nvcpus = 8\nmax_vcpus = 4\n", "runtime.toml:2) is 8, want at most sandbox.max_vcpus, which is 4"},
		{"[sandbox]\nmemory_block_mib = 100\n", "want a power of two"},
		{"[timeouts]\nboot = \"soon\"\n", "timeouts.boot is \"soon\", want a duration"},
		{"[timeouts]\nboot = \"2h\"\n", "from 1s to 1h0m0s"},
		{"[guest]\nkernel = \"/a/../b\"\n", "want an absolute path without"},
		{"[guest]\nkernel = \"/a\\u0007\"\n", "without control characters"},
		{"[guest]\nimage = \"/a\"\ninitrd = \"/b\"\n", "want one of them"},
		{"[guest]\nkernel_params = \"" + strings.Repeat("x", maxText+1) + "\"\n", "want at most 4096"},
		{"[vmm]\nsnp_id_block = \"x\"\n", "both or neither"},
		{"[vmm]\nkind = \"remote\"\n", `network.model (default) is "tc"`},
		{"[annotations]\nenabled = [\"sandbox.tee\"]\n", "want keys that annotations can set"},
		{"[annotations]\nvalid_guest_paths = [\"[\"]\n", "want patterns of absolute paths"},
		{"[annotations]\nvalid_guest_paths = [1]\n", "want a list of texts"},
		{"[sandbox]\ntee = \"snp\"\n[storage]\nshared_fs = \"virtiofs\"\n", `want "none", because sandbox.tee is "snp"`},
		{"[sandbox]\ntee = \"tpm\"\n[storage]\nemptydir = \"block-plain\"\n", "storage.emptydir"},
		{"[sandbox]\ntee = \"tdx\"\n[guest]\nimage = \"/a\"\n", "nothing measures: want guest.verity_params"},
		{"[guest]\nimage = \"/a\"\nverity_params = \"root_hash=00\"\n", "guest.verity_params ("},
		{"[guest]\nverity_params = \"" + goodVerity + "\"\n", "is set without guest.image"},
		{"[vmm]\ncpu_features = \"+x2apic\"\n", "want NAME=VALUE"},
		{"[vmm]\nkind = \"cloud-hypervisor\"\ncpu_features = \"pmu=off\"\n", "cannot be had with vmm.kind \"cloud-hypervisor\""},
		{"[vmm]\nkind = \"cloud-hypervisor\"\nmachine_type = \"q35\"\n", "want none for vmm.kind"},
		{"[vmm]\nkind = \"cloud-hypervisor\"\n[cgroup]\npin_vcpus = true\n", "cgroup.pin_vcpus"},
		{"[vmm]\nmachine_type = \"pseries\"\n", "want one of q35, microvm"},
		{"[vmm]\nmachine_type = \"virt\"\n", `is for sandbox.tee ["cca"] and not for "none"`},
		{"[sandbox]\ntee = \"se\"\n[vmm]\nmachine_type = \"q35\"\n", `not for "se"`},
		{"[vmm]\ngpus = 1\n", "vmm.gpus"},
		{"[vmm]\ngpu_model = \"x\"\n", "vmm.gpu_model"},
		{"[vmm]\nkind = \"remote\"\n[storage]\nshared_fs = \"virtiofs\"\n", "storage.shared_fs"},
		{"[vmm]\nkind = \"remote\"\n[sandbox]\nhugepages = true\ntee = \"auto\"\n", "sandbox.hugepages"},
		{"[guest]\nfirmware_vars = \"/x\"\n", "is set without guest.firmware"},
		{"[sandbox]\ntee = \"snp\"\n[guest]\nfirmware = \"/x\"\nfirmware_vars = \"/x\"\n", "has no variables"},
		{"[storage]\nblock_driver = \"virtio-blk\"\n", "unknown key \"storage.block_driver\""},
		{"[sandbox]\ntee = \"tdx\"\n[vmm]\nmachine_type = \"microvm\"\n", "no firmware to measure"},
		{"[sandbox\n", "runtime.toml:1:"},
		{"[sandbox]\nvcpus = 1\nvcpus = 2\n", "runtime.toml:3:"},
		{"[[sandbox]]\nvcpus = 1\n", "sandbox.vcpus is <nil>"},
		{"a.b.c.d.e.f.g.h.i = 1\n", "nested deeper than 8"},
	} {
		if _, err := load(t, tc.text); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%.80q: error %v, want one with %q", tc.text, err, tc.says)
		}
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := load(t, "[sandbox]\nvcpu = 1\ntee = \"x\"\n[nope]\na = 1\n")
	for _, want := range []string{":2:", ":3:", ":5:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name the line %s", err, want)
		}
	}
}

func TestDropInsInOrder(t *testing.T) {
	e, err := load(t, "sandbox = { vcpus = 2, memory_mib = 1024 }\n[guest]\nkernel = \"vmlinuz\"\n",
		"20-b.toml", "[sandbox]\nvcpus = 4\n", "10-a.toml", "[sandbox]\nvcpus = 3\nmemory_mib = 2048\n[guest]\ninitrd = \"i\"\n",
		".hidden.toml", "nonsense", "readme.txt", "nonsense")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(e.Files[0])
	for key, want := range map[string]string{
		"sandbox.vcpus":      "drop-in " + dir + "/config.d/20-b.toml:2",
		"sandbox.memory_mib": "drop-in " + dir + "/config.d/10-a.toml:3",
		"guest.kernel":       dir + "/runtime.toml:3",
		"network.model":      "default",
	} {
		if got := e.Source(key).String(); got != want {
			t.Errorf("%s came from %s, want %s", key, got, want)
		}
	}
	c := e.Config
	if c.Sandbox.VCPUs != 4 || c.Sandbox.MemoryMiB != 2048 || c.Guest.Kernel != dir+"/vmlinuz" || c.Guest.Initrd != dir+"/config.d/i" {
		t.Errorf("%+v %+v", c.Sandbox, c.Guest)
	}
	if len(e.Files) != 3 {
		t.Errorf("files read: %v", e.Files)
	}
	if _, err := load(t, "", "10-a.toml", "\n[sandbox]\nx = 1\n"); err == nil || !strings.Contains(err.Error(), "drop-in ") ||
		!strings.Contains(err.Error(), "10-a.toml:3: unknown key") {
		t.Errorf("fault in a drop-in: %v", err)
	}
}

func TestWhatIsNotAFileIsNotWaitedFor(t *testing.T) {
	if _, err := Load(Request{File: os.DevNull}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a device: %v", err)
	}
	big := filepath.Join(t.TempDir(), "big.toml")
	write(t, big, strings.Repeat("#", maxFile+1))
	if _, err := Load(Request{File: big}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a big file: %v", err)
	}
}

func TestAutoFollowsTheTEE(t *testing.T) {
	for _, tc := range []struct {
		text, shared, empty string
		static              bool
	}{
		{"", SharedFSVirtiofs, EmptyDirShared, false},
		{"[sandbox]\ntee = \"tdx\"", SharedFSNone, EmptyDirSealed, true},
		{"[sandbox]\ntee = \"tpm\"", SharedFSNone, EmptyDirSealed, true},
		{"[sandbox]\ntee = \"tpm\"\n[storage]\nemptydir = \"guest\"", SharedFSNone, EmptyDirGuest, true},
		{"[storage]\nshared_fs = \"none\"", SharedFSNone, EmptyDirSealed, false},
		{"[vmm]\nkind = \"remote\"\n[network]\nmodel = \"none\"", SharedFSNone, EmptyDirSealed, true},
	} {
		e, err := load(t, tc.text)
		if err != nil {
			t.Fatalf("%q: %v", tc.text, err)
		}
		if c := e.Config; c.SharedFS() != tc.shared || c.EmptyDir() != tc.empty || c.Static() != tc.static {
			t.Errorf("%q: %s, %s, static %v", tc.text, c.SharedFS(), c.EmptyDir(), c.Static())
		}
	}
}

func TestInsecureIsListed(t *testing.T) {
	c := Default()
	if on := c.Insecure(); len(on) != 0 {
		t.Errorf("the default has %v on", on)
	}
	c.Tracing.OTLPInsecureHTTP, c.Debug.RecordRequests = true, true
	if on := c.Insecure(); len(on) != 2 {
		t.Errorf("listed: %v", on)
	}
}

func TestDurations(t *testing.T) {
	e, err := load(t, "[timeouts]\ncreate_container = \"90s\"\n")
	if err != nil || e.Config.Timeouts.CreateContainer != 90*time.Second {
		t.Fatalf("%v, %v", e, err)
	}
}
