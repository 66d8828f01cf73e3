package sandbox

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister/cloister/host/cri"
	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/volume"
	"github.com/cloister/cloister/internal/needs"
)

const verity = "root_hash=a3f1aa0d9c2b4e5f60718293a4b5c6d7e8f900112233445566778899aabbccdd,salt=0011aabb,data_blocks=65536," +
	"data_block_size=4096,hash_block_size=4096"

// teeHost is a host that has KVM and hardware of every kind for this architecture.
func teeHost(t *testing.T) doctor.Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"dev/kvm": "", "dev/sev": "", "sys/module/kvm_amd/parameters/sev_snp": "Y", "sys/module/kvm_intel/parameters/tdx": "Y",
	} {
		write(t, filepath.Join(root, name), []byte(text))
	}
	return doctor.Host{Root: root, ProbeKVM: func(context.Context, string) error { return nil }}
}

func write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// image is a disk whose first partition has a file system that looks like ext4.
func image() []byte {
	disk := make([]byte, 1<<20+4096)
	disk[446+4] = 0x83
	binary.LittleEndian.PutUint32(disk[446+8:], 2048)
	disk[510], disk[511] = 0x55, 0xaa
	binary.LittleEndian.PutUint16(disk[1<<20+1024+56:], 0xef53)
	return disk
}

// world is a folder with files that a configuration can name; in texts @ is its path.
func world(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"kernel", "kernel2", "initrd", "initrd2", "code", "vars", "vars2"} {
		write(t, filepath.Join(dir, name), []byte(name))
	}
	write(t, filepath.Join(dir, "image"), image())
	return dir
}

// effective reads a configuration with a drop-in.
func effective(t *testing.T, dir string, text, dropIn string) (*runtimeconfig.Effective, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "runtime.toml")
	write(t, file, []byte(strings.ReplaceAll(text, "@", dir)))
	write(t, filepath.Join(filepath.Dir(file), "config.d/1.toml"), []byte(strings.ReplaceAll(dropIn, "@", dir)))
	return runtimeconfig.Load(runtimeconfig.Request{File: file})
}

// observe is everything that a configuration makes of a pod before anything of it runs, as text.
func observe(t *testing.T, e *runtimeconfig.Effective, limited bool) string {
	t.Helper()
	if e.Config.Sandbox.TEE != runtimeconfig.TEENone {
		e.Initdata = []byte("version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"policy.rego\" = \"package agent_policy\"\n")
	}
	s := &Sandbox{
		cfg: Config{
			Root: "/r", Namespace: "n", ID: "pod", Runtime: e, Host: teeHost(t),
			Spec: &specs.Spec{Linux: &specs.Linux{Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}}, Process: &specs.Process{}},
		},
		dir: "/r/n/pod", runtime: &e.Config, containers: map[string]*container{},
	}
	if limited {
		limit := int64(256 << 20)
		s.cfg.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	}
	ctx := t.Context()
	if err := s.size(ctx); err != nil {
		t.Fatal(err)
	}
	var seen []any
	plan := s.plan
	seen = append(seen, "plan", plan, "limits", s.limits())
	if e.Config.VMM.Kind != "remote" {
		vm, err := s.vmConfig(ctx)
		if err != nil {
			t.Fatal(err)
		}
		vm.InitdataImage = nil
		seen = append(seen, "vm", vm)
	}
	share := s.shareConfig()
	health := s.healthConfig()
	m := s.manageConfig()
	seen = append(seen, "network", s.networkConfig("/netns"), "share", share.Program, share.Args, share.Cache, e.Config.SharedFS(), "remote", s.remoteConfig(),
		"health", health.Timeout.String(), "profiles", m.Profiles, m.Timeout.String(),
		"spec", guestSpec(s.cfg.Spec, &volume.Prepared{}, cri.KindSingle, "/b", e.Config.Seccomp()))
	var b strings.Builder
	for _, x := range seen {
		text, err := json.Marshal(x)
		if err != nil {
			t.Fatalf("%T: %v", x, err)
		}
		fmt.Fprintf(&b, "%s\n", text)
	}
	return b.String()
}

// row is what shows that a setting has an effect: another value that changes what is observed, or the test that shows it.
type row struct {
	base, other, test string
	limited           bool // the pod has a limit of memory
}

const (
	elsewhere = "vmm.kind = \"remote\"\nnetwork.model = \"none\"\n"
	snp       = "sandbox.tee = \"snp\"\nguest.firmware = \"@/code\"\n"
	tdx       = "sandbox.tee = \"tdx\"\nguest.firmware = \"@/code\"\n"
)

func rows() map[string]row {
	here := func(name string) row { return row{test: "effects_test.go " + name} }
	return map[string]row{
		"sandbox.tee":                 {base: "guest.firmware = \"@/code\"\nguest.firmware_vars = \"@/vars\"\n", other: `"tpm"`},
		"sandbox.vcpus":               {other: "0.5", base: "sandbox.overhead_vcpus = 0.5\nsandbox.vcpus = 1.5\n"},
		"sandbox.max_vcpus":           {base: "sandbox.vcpus = 0.5\n", other: "1"},
		"sandbox.memory_mib":          {other: "1024"},
		"sandbox.max_memory_mib":      {other: "1024"},
		"sandbox.overhead_vcpus":      {base: "sandbox.vcpus = 0.5\n", other: "1.2"},
		"sandbox.overhead_memory_mib": {other: "777", limited: true},
		"sandbox.memory_block_mib":    {other: "512"},
		"sandbox.static_sizing":       {other: "true"},
		"sandbox.hugepages":           {other: "true"},
		"sandbox.template":            {test: "../../test/guestvm/template_test.go TestSandboxFromTemplate"},

		"guest.kernel":        {other: `"@/kernel2"`},
		"guest.initrd":        {base: "guest.initrd = \"@/initrd\"\n", other: `"@/initrd2"`},
		"guest.image":         {other: `"@/image"`},
		"guest.verity_params": {base: "guest.image = \"@/image\"\n", other: `"` + verity + `"`},
		"guest.firmware":      {base: snp, other: `"@/kernel2"`},
		"guest.firmware_vars": {base: "guest.firmware = \"@/code\"\nguest.firmware_vars = \"@/vars\"\n", other: `"@/vars2"`},
		"guest.kernel_params": {other: `"a=b"`},
		"guest.seccomp":       {other: `"off"`},

		"vmm.kind":           {test: "../../test/monitors/monitors_test.go TestMonitors"},
		"vmm.path":           {other: `"@/kernel2"`},
		"vmm.accel":          {other: `"tcg"`},
		"vmm.machine_type":   {other: `"microvm"`},
		"vmm.cpu_features":   {other: `"pmu=off"`},
		"vmm.remote_socket":  {base: elsewhere, other: `"/x.sock"`},
		"vmm.gpus":           {base: elsewhere, other: "1"},
		"vmm.gpu_model":      {base: elsewhere, other: `"h100"`},
		"vmm.snp_policy":     {base: snp, other: "196609"},
		"vmm.snp_id_block":   {base: snp + "vmm.snp_id_auth = \"YQ==\"\nvmm.snp_id_block = \"YQ==\"\n", other: `"Yg=="`},
		"vmm.snp_id_auth":    {base: snp + "vmm.snp_id_auth = \"YQ==\"\nvmm.snp_id_block = \"YQ==\"\n", other: `"Yg=="`},
		"vmm.tdx_quote_port": {base: tdx, other: "4051"},

		"network.model":              {other: `"macvtap"`},
		"network.queues":             {base: "sandbox.vcpus = 1.5\n", other: "2"},
		"network.vhost":              {other: "false"},
		"network.rx_bits_per_second": {other: "1000000"},
		"network.tx_bits_per_second": {other: "1000000"},

		"storage.shared_fs":      {other: `"none"`},
		"storage.virtiofsd":      {other: `"/x"`},
		"storage.virtiofsd_args": {other: `["--x"]`},
		"storage.virtiofs_cache": {other: `"never"`},
		"storage.emptydir":       {test: "../volume/emptydir_test.go TestEmptyDirs"},
		"storage.scratch_mib":    {test: "scratch_test.go TestScratchSize"},
		"storage.guest_pull":     {test: "../volume/device_test.go TestWithoutShare"},

		"timeouts.boot":             here("TestTimeouts"),
		"timeouts.create_container": here("TestTimeouts"),
		"timeouts.request":          here("TestTimeouts"),
		"timeouts.health_check":     {other: `"2s"`},
		"timeouts.hub":              {other: `"1500ms"`},
		"timeouts.guest_process":    {other: `"9s"`},
		"timeouts.remote":           {base: elsewhere, other: `"61s"`},

		"cgroup.pin_vcpus": here("TestPin"),

		"logging.level":       {test: "../shim/level_test.go TestLevel"},
		"logging.guest_level": {other: `"debug"`},

		"tracing.steps":              here("TestSteps"),
		"tracing.otlp_endpoint":      {test: "../runtimeconfig/tracing_test.go TestExporterHasEverySetting"},
		"tracing.otlp_certificates":  {test: "../runtimeconfig/tracing_test.go TestExporterHasEverySetting"},
		"tracing.otlp_headers_file":  {test: "../runtimeconfig/tracing_test.go TestExporterHasEverySetting"},
		"tracing.otlp_insecure_http": {test: "../runtimeconfig/tracing_test.go TestExporterHasEverySetting"},
		"tracing.ratio":              {test: "../runtimeconfig/tracing_test.go TestExporterHasEverySetting"},

		"debug.keep_failed":     here("TestKeepFailed"),
		"debug.profiles":        {other: "true"},
		"debug.record_requests": {test: "record_test.go TestRecordRequests"},

		"annotations.enabled":               {test: "../runtimeconfig/annotation_test.go TestAnnotations"},
		"annotations.valid_guest_paths":     {test: "../runtimeconfig/annotation_test.go TestAnnotatedPaths"},
		"annotations.valid_vmm_paths":       {test: "../runtimeconfig/annotation_test.go TestAnnotatedPaths"},
		"annotations.valid_virtiofsd_paths": {test: "../runtimeconfig/annotation_test.go TestAnnotatedPaths"},
	}
}

// TestEverySettingHasAnEffect: each key changes what becomes of a pod, or names the test that shows what it does.
func TestEverySettingHasAnEffect(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		needs.Optional(t, "the hosts with hardware protection are those of amd64")
	}
	dir := world(t)
	table := rows()
	usual, err := effective(t, dir, "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range usual.Values() {
		r, there := table[v.Key]
		delete(table, v.Key)
		switch {
		case !there:
			t.Errorf("nothing shows that %s has an effect: add a row", v.Key)
			continue
		case r.test != "":
			file, name, _ := strings.Cut(r.test, " ")
			text, err := os.ReadFile(file)
			if err != nil || !strings.Contains(string(text), "func "+name+"(") {
				t.Errorf("%s is said to be tested by %s in %s: %v", v.Key, name, file, err)
			}
			continue
		}
		t.Run(v.Key, func(t *testing.T) {
			base := r.base
			if !strings.Contains(base, "guest.kernel = ") {
				base = "guest.kernel = \"@/kernel\"\n" + base
			}
			before, err := effective(t, dir, base, "")
			if err != nil {
				t.Fatal(err)
			}
			after, err := effective(t, dir, base, v.Key+" = "+r.other+"\n")
			if err != nil {
				t.Fatal(err)
			}
			if one, two := observe(t, before, r.limited), observe(t, after, r.limited); one == two {
				t.Errorf("%s = %s changes nothing of\n%s", v.Key, r.other, one)
			}
		})
	}
	for key := range table {
		t.Errorf("there is a row for %s, which is no setting", key)
	}
}
