package runtimeconfig

import (
	"slices"
	"strings"
	"testing"
	"time"
)

const kataSNP = `
[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64-snp-experimental"
kernel = "/opt/kata/share/kata-containers/vmlinuz-confidential.container"
image = "/opt/kata/share/kata-containers/kata-containers-confidential.img"
machine_type = "q35"
rootfs_type = "ext4"
confidential_guest = true
sev_snp_guest = true
snp_guest_policy = 196608
kernel_verity_params = "` + goodVerity + `"
enable_annotations = ["enable_iommu", "kernel_params", "default_.*", "cc_init_data"]
valid_hypervisor_paths = ["/opt/kata/bin/qemu*"]
kernel_params = "cgroup_no_v1=all"
default_vcpus = 1
default_memory = 2048
default_maxmemory = 0
shared_fs = "none"
virtio_fs_extra_args = ["--thread-pool-size=1", "-o", "announce_submounts"]
virtio_fs_cache_size = 0
block_device_driver = "virtio-scsi"
disable_vhost_net = true
enable_debug = false
invented_key = 3

[agent.kata]
reconnect_timeout_ms = 45000
create_container_timeout = 60
cdh_api_timeout_ms = 50000
kernel_modules = []

[runtime]
hypervisor_name = "qemu"
internetworking_model = "tcfilter"
disable_guest_seccomp = true
sandbox_cgroup_only = true
static_sandbox_resource_mgmt = true
emptydir_mode = "block-encrypted"
experimental = ["force_guest_pull"]
enable_tracing = false

[[hypervisor.qemu.guest_extension_images]]
name = "coco"
path = "/x"
`

func TestKataFile(t *testing.T) {
	e, err := load(t, kataSNP)
	if err != nil {
		t.Fatal(err)
	}
	c := e.Config
	for what, ok := range map[string]bool{
		"tee": c.Sandbox.TEE == "snp", "memory": c.Sandbox.MemoryMiB == 2048, "static": c.Sandbox.StaticSizing,
		"vmm":  c.VMM.Kind == "qemu",
		"path": strings.HasSuffix(c.VMM.Path, "snp-experimental"), "vhost": !c.Network.Vhost, "model": c.Network.Model == "tc",
		"seccomp": c.Guest.Seccomp == SeccompOff && !c.Seccomp(), "emptydir": c.Storage.EmptyDir == EmptyDirSealed, "pull": c.Storage.GuestPull,
		"create": c.Timeouts.CreateContainer == time.Minute, "hub": c.Timeouts.Hub == 50*time.Second,
		"shared": c.Storage.SharedFS == SharedFSNone,
		"params": c.Guest.KernelParams == "cgroup_no_v1=all",
		"enabled": slices.Equal(c.Annotations.Enabled, []string{"guest.kernel_params", "initdata", "policy", "sandbox.max_vcpus",
			"sandbox.memory_mib", "sandbox.vcpus", "timeouts.create_container", "vmm.gpu_model", "vmm.gpus"}),
	} {
		if !ok {
			t.Errorf("%s is wrong: %+v", what, c)
		}
	}
	if got := e.Source("timeouts.hub"); got.Name != "agent.kata.cdh_api_timeout_ms" || got.Line != 29 {
		t.Errorf("timeouts.hub came from %+v", got)
	}
	reasons := map[string]string{}
	for _, i := range e.Ignored {
		reasons[i.Key] = i.Reason
		if i.Source.Line == 0 {
			t.Errorf("ignored key %s has no line", i.Key)
		}
	}
	for key, want := range map[string]string{
		"hypervisor.qemu.rootfs_type":                 "chosen by Cloister itself",
		"hypervisor.qemu.invented_key":                "not a key that Cloister knows",
		"hypervisor.qemu.guest_extension_images.name": "without extensions",
		"runtime.enable_tracing":                      "no tracing",
		"agent.kata.kernel_modules":                   "always so here",
		"runtime.sandbox_cgroup_only":                 "always so here",
		"hypervisor.qemu.block_device_driver":         "disks are virtio-blk",
	} {
		if !strings.Contains(reasons[key], want) {
			t.Errorf("%s is ignored because %q, want %q", key, reasons[key], want)
		}
	}
}

func TestKataFaults(t *testing.T) {
	const qemu = "[hypervisor.qemu]\nconfidential_guest = true\nsev_snp_guest = true\n"
	for _, tc := range []struct{ text, says string }{
		{"[hypervisor.qemu]\nconfidential_guest = true\n", "nothing says which TEE"},
		{qemu + "shared_fs = \"virtio-fs\"\n", "shows the guest's files to the host"},
		{qemu + "guest_memory_dump_path = \"/x\"\n",
			"runtime.toml:4: hypervisor.qemu.guest_memory_dump_path is \"/x\", which writes the guest's memory"},
		{qemu + "[hypervisor.qemu.factory]\nenable_template = true\n", "runtime.toml:5) lets guests begin as copies of another"},
		{qemu + "[factory]\nenable_template = true\n", "runtime.toml:5) lets guests begin as copies of another"},
		{"[hypervisor.clh]\npath = \"/x\"\n[factory]\nenable_template = true\n", "runtime.toml:4) cannot be had with vmm.kind \"cloud-hypervisor\""},
		{"[hypervisor.qemu]\npath = \"/x\"\n[factory]\nenable_template = 1\n", "factory.enable_template is 1, want true or false"},
		{qemu + "[runtime]\nsandbox_bind_mounts = [\"/x\"]\n", "refused"},
		{qemu + "[agent.kata]\ndebug_console_enabled = true\n", "opens a shell in the guest to the host"},
		{"[hypervisor.firecracker]\npath = \"/x\"\n", "hypervisor \"firecracker\" is not supported"},
		{"[hypervisor.qemu]\npath = \"/x\"\n[hypervisor.clh]\npath = \"/y\"\n", "several hypervisors (qemu, clh)"},
		{"[hypervisor.qemu]\npath = \"/x\"\n[sandbox]\nvcpus = 1\n", "want a file of Cloister's keys or one of Kata's"},
		{"[hypervisor.qemu]\ndefault_vcpus = \"x\"\n", "runtime.toml:2: sandbox.vcpus is \"x\""},
		{"[runtime]\ninternetworking_model = \"l3forwarding\"\n",
			"internetworking_model is \"l3forwarding\", want one of macvtap, none, tcfilter"},
		{"[runtime]\nhypervisor_name = 3\n", "want a text"},
		{"[hypervisor.dragonball]\nconfidential_guest = true\n[runtime]\nhypervisor_name = \"qemu\"\n", "only tables are of dragonball"},
		{"[runtime]\nexperimental = [\"x\"]\n", "force_guest_pull"},
		{"[hypervisor.qemu]\nenable_annotations = [\"(\"]\n", "want a regular expression"},
		{"[agent.kata]\ncreate_container_timeout = 9223372036854775807\n", "whole number of seconds"},
	} {
		if _, err := load(t, tc.text); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%q: error %v, want one with %q", tc.text, err, tc.says)
		}
	}
}

func TestKataWithoutProtectionIgnoresWhatItRefusesElsewhere(t *testing.T) {
	e, err := load(t, "[hypervisor.qemu]\nguest_memory_dump_path = \"/x\"\nshared_fs = \"virtio-fs\"\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Ignored) != 1 || !strings.Contains(e.Ignored[0].Reason,
		"refused for confidential") || e.Config.SharedFS() != SharedFSVirtiofs {
		t.Errorf("%+v", e.Ignored)
	}
}

func TestKataChoosesTheHypervisor(t *testing.T) {
	e, err := load(t, "[hypervisor.qemu]\ndefault_memory = 1024\n[hypervisor.clh]\ndefault_memory = 4096\n",
		"1.toml", "[runtime]\nhypervisor_name = \"clh\"\n", "2.toml", "[sandbox]\nmemory_mib = 8192\n")
	if err != nil {
		t.Fatal(err)
	}
	if e.Config.VMM.Kind != "cloud-hypervisor" || e.Config.Sandbox.MemoryMiB != 8192 || len(e.Ignored) != 1 {
		t.Errorf("%+v %+v", e.Config.VMM, e.Ignored)
	}
	e, err = load(t, "[hypervisor.clh]\ndefault_memory = 1024\n[runtime]\nhypervisor_name = \"cloud-hypervisor\"\n")
	if err != nil || e.Config.VMM.Kind != "cloud-hypervisor" || e.Config.Sandbox.MemoryMiB != 1024 {
		t.Errorf("two names of one hypervisor: %v", err)
	}
	e, err = load(t, "[hypervisor.remote]\nremote_hypervisor_socket = \"/run/x.sock\"\nremote_hypervisor_timeout = 700\n")
	if err != nil || e.Config.Network.Model != "none" || e.Config.Timeouts.Remote != 700*time.Second {
		t.Errorf("remote: %v", err)
	}
}

// TestOurTEEAgreesWithTheirs: a drop-in names the TEE that Kata's file leaves open, and cannot take it away.
func TestOurTEEAgreesWithTheirs(t *testing.T) {
	const open = "[hypervisor.qemu]\nconfidential_guest = true\nshared_fs = \"none\"\n"
	e, err := load(t, open, "1.toml", "[sandbox]\ntee = \"tdx\"\n")
	if err != nil || e.Config.Sandbox.TEE != "tdx" || e.Source("sandbox.tee").Kind != KindDropIn {
		t.Fatalf("%v", err)
	}
	if _, err := load(t, open, "1.toml", "[sandbox]\ntee = \"none\"\n"); err == nil || !strings.Contains(err.Error(),
		"want both to agree") {
		t.Errorf("protection was taken away: %v", err)
	}
}

// TestKataTemplates: both runtimes of Kata have the key, in different tables.
func TestKataTemplates(t *testing.T) {
	const qemu = "[hypervisor.qemu]\npath = \"/x\"\n"
	for text, want := range map[string]string{
		qemu: TemplateAuto,
		qemu + "[factory]\nenable_template = true\ntemplate_path = \"/run/vc/vm/template\"\n":              TemplateOn,
		qemu + "[factory]\nenable_template = false\n":                                                      TemplateOff,
		qemu + "[hypervisor.qemu.factory]\nenable_template = true\n":                                       TemplateOn,
		qemu + "[hypervisor.clh.factory]\nenable_template = true\n[runtime]\nhypervisor_name = \"qemu\"\n": TemplateAuto,
	} {
		e, err := load(t, text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := e.Config.Sandbox.Template; got != want {
			t.Errorf("%q: sandbox.template is %q, want %q", text, got, want)
		}
		if want == TemplateOn && !strings.HasSuffix(e.Source("sandbox.template").Name, "factory.enable_template") {
			t.Errorf("%q: it came from %+v", text, e.Source("sandbox.template"))
		}
	}
}
