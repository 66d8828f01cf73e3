package policy_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/author/policytest"
	"github.com/cloister/cloister/guest/gate"
	hostagent "github.com/cloister/cloister/host/agent"
	"github.com/cloister/cloister/test/fakeguest"
	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

const typed = "typed in by hand"

// recordLife records the life of a pod with an init container, as the guest behind g lives it, and returns the record.
func recordLife(t *testing.T, g *fakeguest.Guest, setup, web *kubepod.Container) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	file := filepath.Join(t.TempDir(), "requests.jsonl")
	var log bytes.Buffer
	record, err := hostagent.NewRecorder(file, 1<<20, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- g.ServeAgent(guest) }()
	a := hostagent.New(host, nil, record.Interceptor())
	start := kubepod.ID(1)
	for i, call := range []func() error{
		func() error { _, err := a.Health.Check(ctx, &agent.CheckRequest{}); return err },
		func() error {
			_, err := a.SetPolicy(ctx, &agent.SetPolicyRequest{Policy: "package agent_policy"})
			return err
		},
		func() error { _, err := a.CreateSandbox(ctx, kubepod.Sandbox()); return err },
		func() error { _, err := a.CreateContainer(ctx, setup.Request(start)); return err },
		func() error {
			_, err := a.StartContainer(ctx, &agent.StartContainerRequest{ContainerId: start})
			return err
		},
		func() error {
			_, err := a.WaitProcess(ctx, &agent.WaitProcessRequest{ContainerId: start, ExecId: start})
			return err
		},
		func() error {
			_, err := a.RemoveContainer(ctx, &agent.RemoveContainerRequest{ContainerId: start})
			return err
		},
		func() error { _, err := a.CreateContainer(ctx, web.Request(kubepod.ID(2))); return err },
		func() error {
			_, err := a.StartContainer(ctx, &agent.StartContainerRequest{ContainerId: kubepod.ID(2)})
			return err
		},
		func() error {
			_, err := a.WriteStdin(ctx, &agent.WriteStreamRequest{ContainerId: kubepod.ID(2), Data: []byte(typed)})
			return err
		},
		func() error {
			_, err := a.SignalProcess(ctx, &agent.SignalProcessRequest{ContainerId: kubepod.ID(2), Signal: 9})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Fatal(i, err)
		}
	}
	for range 100 { // it is asked over and over
		if _, err := a.StatsContainer(ctx, &agent.StatsContainerRequest{ContainerId: kubepod.ID(2)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.DestroySandbox(ctx, &agent.DestroySandboxRequest{}); err != nil {
		t.Fatal(err)
	}
	a.Close()
	<-served
	record.Close()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 {
		t.Errorf("the recorder says: %s", log.String())
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("the record's mode is %v, %v", info.Mode(), err)
	}
	return raw
}

// replayed are the kinds of requests that a policy refuses.
func replayed(t *testing.T, e *gate.Engine, record []byte) (refused []string) {
	t.Helper()
	cases, err := policytest.Read(bytes.NewReader(record))
	if err != nil {
		t.Fatal(err)
	}
	if err := policytest.Run(t.Context(), e, cases, func(r policytest.Result) error {
		if r.Unexpected {
			refused = append(refused, r.Kind+": "+r.Reason)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return refused
}

// TestRecord: what the host has asked of a guest with a policy that allows all, a policy can be tested with.
func TestRecord(t *testing.T) {
	pause, setup, web := kubepod.Pause(), kubepod.Workload("setup"), kubepod.Workload("web")
	pause.Entry["image"] = nil
	for n, c := range []*kubepod.Container{setup, web} {
		c.Entry["image"], c.Entry["order"], c.Entry["kind"] = image(kubepod.DigestOne), n+1, []string{"init", "container"}[n]
		c.Entry["must_run"], c.Entry["restarts"], c.Entry["signals"] = n < 1, n > 0, []int{9}
	}
	data := ours(kubepod.Data(pause, setup, web))
	data["request_defaults"].(kubepod.Object)["WriteStreamRequest"] = true
	raw := recordLife(t, &fakeguest.Guest{Gate: gate.NewOpen(gate.Options{}), Programs: map[string]fakeguest.Program{
		kubepod.ID(2): func(ctx context.Context, p *fakeguest.Process) int {
			_, _ = io.CopyN(io.Discard, p.Stdin, int64(len(typed)))
			<-ctx.Done()
			return 137
		},
	}}, setup, web)
	record := string(raw)
	var kinds []string
	for line := range strings.Lines(record) {
		kind, _, _ := strings.Cut(strings.TrimPrefix(line, `{"kind":"`), `"`)
		kinds = append(kinds, kind)
	}
	if got, want := strings.Join(kinds, " "), "CreateSandboxRequest CreateContainerRequest StartContainerRequest WaitProcessRequest ContainerExited "+
		"RemoveContainerRequest CreateContainerRequest StartContainerRequest WriteStreamRequest SignalProcessRequest StatsContainerRequest "+
		"DestroySandboxRequest"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if strings.Contains(record, "116,121,112,101,100") {
		t.Error("what was typed in is in the record")
	}
	if refused := replayed(t, kubeEngine(t, data), raw); len(refused) > 0 {
		t.Errorf("the matching policy refuses %q", refused)
	}
	web.Entry["signals"] = []int{15}
	if refused := replayed(t, kubeEngine(t, data), raw); len(refused) != 1 || !strings.HasPrefix(refused[0], "SignalProcessRequest: ") {
		t.Errorf("a policy without that signal refuses %q", refused)
	}
}

// TestRecordEnds: a record that is full ends with a whole line, and the requests do not notice.
func TestRecordEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "requests.jsonl")
	var log bytes.Buffer
	record, err := hostagent.NewRecorder(file, 400, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	host, guest := net.Pipe()
	go func() { _ = (&fakeguest.Guest{Gate: gate.NewOpen(gate.Options{})}).ServeAgent(guest) }()
	a := hostagent.New(host, nil, record.Interceptor())
	defer a.Close()
	for n := range 50 {
		if _, err := a.RemoveContainer(t.Context(), &agent.RemoveContainerRequest{ContainerId: kubepod.ID(n)}); err != nil {
			t.Fatal(err)
		}
	}
	record.Close()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if cases, err := policytest.Read(bytes.NewReader(raw)); err != nil || len(cases) == 0 || len(raw) > 400 {
		t.Errorf("got %d bytes, %d requests, %v", len(raw), len(cases), err)
	}
	if n := strings.Count(log.String(), "the record is full"); n != 1 {
		t.Errorf("it was said %d times: %s", n, log.String())
	}
}
