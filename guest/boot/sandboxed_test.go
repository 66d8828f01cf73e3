package boot

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/policyinput"
)

func sandboxedMachine(t *testing.T, root string) *machine {
	t.Helper()
	m := &machine{log: slog.New(slog.DiscardHandler), root: root, cfg: DefaultConfig()}
	m.cfg.Sandboxed, m.cfg.Initdata, m.cfg.Components = true, InitdataNone, ComponentsNone
	return m
}

// TestSandboxedAllowsAll asks the policy of sandboxed mode about every request of the protocol.
func TestSandboxedAllowsAll(t *testing.T) {
	m := sandboxedMachine(t, t.TempDir())
	if err := errors.Join(m.openPlatform(t.Context()), m.loadPolicy(t.Context()), m.startServices(t.Context())); err != nil {
		t.Fatal(err)
	}
	if !m.gate.Insecure() {
		t.Error("a guest that allows everything does not say so")
	}
	service := reflect.TypeFor[agent.AgentServiceService]()
	for i := range service.NumMethod() {
		req := reflect.New(service.Method(i).Type.In(1).Elem()).Interface().(proto.Message)
		if err := m.gate.Allow(t.Context(), policyinput.RuleName(req), req); err != nil {
			t.Error(err)
		}
	}
	const closed = "package agent_policy\ndefault SetPolicyRequest := false\n"
	if err := m.gate.SetPolicy(t.Context(), closed); err != nil {
		t.Fatal(err)
	}
	var denied *gate.DeniedError
	if err := m.gate.SetPolicy(t.Context(), closed); !errors.As(err, &denied) {
		t.Errorf("after a policy was set: %v", err)
	}
	m.log = slog.New(slog.DiscardHandler)
	if got := m.agentConfig().Features; !reflect.DeepEqual(got, []string{"cloister-sandboxed"}) {
		t.Errorf("features %v", got)
	}
}

// TestSandboxedRefusesProof starts where something could be proven.
func TestSandboxedRefusesProof(t *testing.T) {
	for _, file := range []string{
		"dev/tdx_guest", "dev/sev-guest", "dev/csv-guest", "dev/uv", "dev/tpm0", "dev/tpmrm0", "sys/devices/system/cpu/sev/vmpl",
		"sys/devices/platform/sev-guest/modalias", "sys/firmware/acpi/tables/TPM2", "sys/firmware/acpi/tables/TCPA", "sys/firmware/acpi/tables/CCEL",
	} {
		root := t.TempDir()
		path := filepath.Join(root, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		err := sandboxedMachine(t, root).openPlatform(t.Context())
		if !errors.Is(err, errProvable) || errors.Is(err, fs.ErrNotExist) && !errors.Is(err, attest.ErrUnsupported) {
			t.Errorf("%s: %v", file, err)
		}
	}
	root := t.TempDir()
	if err := errors.Join(os.Mkdir(root+"/proc", 0o755), os.WriteFile(root+"/proc/cpuinfo", []byte("flags : fpu tdx_guest\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := sandboxedMachine(t, root).openPlatform(t.Context()); !errors.Is(err, errProvable) {
		t.Errorf("processor flag: %v", err)
	}
}

func TestSandboxedRefusesInitdata(t *testing.T) {
	sys, dev := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(sys+"/class/block/vda", 0o755); err != nil {
		t.Fatal(err)
	}
	text := initdata.EncodeDevice(document(t, "sha256"))
	broken := append([]byte{}, text...)
	broken[60] ^= 1
	for name, c := range map[string]struct {
		data    []byte
		refused bool
	}{"volume": {make([]byte, 4096), false}, "initdata": {text, true}, "broken initdata": {broken, true}} {
		if err := os.WriteFile(dev+"/vda", c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := refuseInitdata(sys, dev); (err != nil) != c.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}
