package boot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/guest/uevent"
	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/initdata"
	"github.com/cloister/cloister/wire/policyinput"
)

func TestParseCmdline(t *testing.T) {
	c, err := ParseCmdline("console=ttyS0 quiet cloister.initdata=none agent.log=debug agent.hotplug_timeout=7 agent.cdh_api_timeout=0 " +
		"agent.guest_components_procs=attestation-agent agent.guest_components_rest_api=resource agent.devmode \"dyndbg=a b agent.log=x\"\n")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultConfig()
	want.Initdata, want.LogLevel, want.HotplugTimeout = InitdataNone, slog.LevelDebug, 7*time.Second
	want.Components, want.RESTFeatures, want.Ignored = ComponentsAttestation, "resource", []string{"agent.devmode"}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v\nwant %+v", c, want)
	}
	if c, err := ParseCmdline(""); err != nil || c.Initdata != InitdataRequired {
		t.Errorf("an empty command line must require initdata: %+v, %v", c, err)
	}
	for _, line := range []string{"cloister.sandboxed", "cloister.sandboxed cloister.initdata=required", "cloister.initdata=required cloister.sandboxed"} {
		if c, err := ParseCmdline(line); err != nil || !c.Sandboxed || c.Initdata != InitdataNone {
			t.Errorf("%s: %+v, %v", line, c, err)
		}
	}
	for _, bad := range []string{
		"cloister.sandboxed=1", "cloister.sandboxed=no", "cloister.initdata", "cloister.initdata=no", "cloister.initdata=", "cloister.typo=1", "agent.log=loud", "agent.hotplug_timeout=-1",
		"agent.hotplug_timeout=1s", "agent.guest_components_procs=some", "agent.guest_components_rest_api=none", "agent.container_pipe_size=9999999999",
	} {
		if _, err := ParseCmdline("quiet " + bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzParseCmdline(f *testing.F) {
	f.Add("console=ttyS0 quiet panic=-1 cloister.initdata=required")
	f.Add(`a="b c" agent.log=info "`)
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCmdline(s)
		if err == nil && c.Initdata != InitdataRequired && !c.Sandboxed && !strings.Contains(strings.ReplaceAll(s, `"`, ""), "cloister.initdata=none") {
			t.Errorf("%q switched initdata to %s", s, c.Initdata)
		}
	})
}

// extender records measurements.
type extender struct {
	pcr  int
	sum  []byte
	fail error
}

func (e *extender) ExtendPCR(_ context.Context, pcr int, digest []byte) error {
	e.pcr, e.sum = pcr, digest
	return e.fail
}

func document(t *testing.T, alg string) []byte {
	t.Helper()
	doc := initdata.Document{Version: "0.1.0", Algorithm: alg, Data: map[string]string{partPolicy: "package agent_policy", partAttestation: "x = 1"}}
	text, err := doc.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestMeasureInitdata(t *testing.T) {
	text := document(t, "sha256")
	sum := sha256.Sum256(text)
	e := &extender{}
	d, err := measureInitdata(t.Context(), e, text)
	if err != nil || e.pcr != 8 || !bytes.Equal(e.sum, sum[:]) || d.Data[partPolicy] == "" {
		t.Fatalf("got %+v, %+v, %v", d, e, err)
	}
	for name, bad := range map[string][]byte{"malformed": []byte("version = "), "other algorithm": document(t, "sha384"), "empty": nil} {
		e := &extender{}
		if _, err := measureInitdata(t.Context(), e, bad); err == nil {
			t.Errorf("%s was accepted", name)
		}
		if e.pcr != 8 {
			t.Errorf("%s was interpreted before it was measured", name)
		}
	}
	if _, err := measureInitdata(t.Context(), &extender{fail: errors.New("no")}, text); err == nil {
		t.Error("unmeasured initdata was accepted")
	}
}

func TestReadInitdata(t *testing.T) {
	sys, dev := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(sys+"/class/block", 0o755); err != nil {
		t.Fatal(err)
	}
	disk := func(name string, data []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(dev+"/"+name, data, 0o644), os.Mkdir(sys+"/class/block/"+name, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	disk("loop0", initdata.EncodeDevice([]byte("not looked at")))
	disk("vda", make([]byte, 4096))
	if _, err := readInitdata(sys, dev); !errors.Is(err, initdata.ErrNoInitdata) {
		t.Fatalf("got %v", err)
	}
	want := document(t, "sha256")
	disk("vdb", initdata.EncodeDevice(want))
	if got, err := readInitdata(sys, dev); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %q, %v", got, err)
	}
	broken := initdata.EncodeDevice(want)
	broken[60] ^= 1
	disk("sda", broken)
	if _, err := readInitdata(sys, dev); err == nil {
		t.Fatal("a broken device was skipped")
	}
}

func TestStoreInitdata(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a/b")
	d := &Initdata{Text: []byte("all"), Data: map[string]string{partPolicy: "p", partAttestation: "aa", "other": "x"}}
	if err := d.store(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"initdata.toml": "all", "aa.toml": "aa"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("got %v", entries)
	}
}

// TestDefaultPolicy asks the built-in policy about every request of the protocol.
func TestDefaultPolicy(t *testing.T) {
	engine, err := gate.New(defaultPolicy, gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if engine.Insecure() {
		t.Error("the built-in policy lets refused requests through")
	}
	service := reflect.TypeFor[agent.AgentServiceService]()
	for i := range service.NumMethod() {
		req := reflect.New(service.Method(i).Type.In(1).Elem()).Interface().(proto.Message)
		rule := policyinput.RuleName(req)
		err := engine.Allow(t.Context(), rule, req)
		open := rule == "GuestDetailsRequest" || rule == "DestroySandboxRequest"
		var denied *gate.DeniedError
		if open != (err == nil) || !open && !errors.As(err, &denied) {
			t.Errorf("%s: %v", rule, err)
		}
	}
}

func TestFatalIsOneLine(t *testing.T) {
	var b bytes.Buffer
	fatal(&b, errors.Join(errors.New("one"), errors.New("two\n  three")))
	if got := b.String(); got != "cloister-guest: fatal: one; two; three\n" {
		t.Errorf("got %q", got)
	}
}

func TestLogHub(t *testing.T) {
	h := NewLogHub()
	log := slog.New(h.Handler(slog.LevelInfo))
	log.Info("before")
	log.Debug("hidden")
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, l) }()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(c)
	next := func(want string) {
		t.Helper()
		var entry struct{ Msg, Level, Source, TS string }
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &entry) != nil || entry.Msg != want || entry.Level != "info" || entry.Source != "agent" || entry.TS == "" {
			t.Fatalf("got %q, want %s", lines.Text(), want)
		}
	}
	next("before")
	log.Info("after")
	next("after")
	for range 10_000 { // more than is kept
		log.Info(strings.Repeat("x", 200))
	}
	if h.size > logBacklog {
		t.Errorf("%d bytes kept", h.size)
	}
	cancel()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

func TestReservedDevices(t *testing.T) {
	sys := t.TempDir()
	for file, dev := range map[string]string{"class/tpmrm/tpmrm0": "253:65536", "class/virtio-ports/vport1p1": "247:1", "class/misc/fuse": "10:229"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(sys, file), 0o755), os.WriteFile(filepath.Join(sys, file, "dev"), []byte(dev+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	reserved := reservedDevices(sys)
	if !reserved(253, 65536) || !reserved(247, 1) || reserved(10, 229) || reserved(25, 65536) {
		t.Error("the wrong devices are reserved")
	}
}

// TestPlatformWithoutAttester boots where a TEE stands beside a TPM: the TPM is the host's and proves less.
func TestPlatformWithoutAttester(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tdx_guest", "tpmrm0", "tpm0"} {
		if err := os.WriteFile(filepath.Join(root, "dev", name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	events, err := uevent.Open()
	if err != nil {
		needs.Missing(t, "the right to see device events: %v", err)
	}
	defer events.Close()
	m := &machine{log: slog.New(slog.DiscardHandler), events: events, root: root, cfg: DefaultConfig()}
	m.cfg.Initdata = InitdataRequired
	if err := m.openPlatform(t.Context()); !errors.Is(err, attest.ErrUnsupported) || !strings.Contains(err.Error(), "tdx") {
		t.Errorf("with initdata: got %v, expected that TDX cannot be attested", err)
	}
	m.cfg.Initdata = InitdataNone
	if err := m.openPlatform(t.Context()); err != nil || m.prover != nil {
		t.Fatalf("without initdata: got %v, %v", m.prover, err)
	}
	m.cfg.Components = ComponentsAttestation
	m.data = &Initdata{Data: map[string]string{partAttestation: "[token_configs.kbs]\nurl = \"https://kbs.example\"\n"}}
	if err := m.startServices(t.Context()); !errors.Is(err, attest.ErrUnsupported) {
		t.Errorf("a broker without evidence: got %v", err)
	}
}
