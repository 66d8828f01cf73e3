package manage

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/wire/agent"
)

// fakeAgent is a guest that does what it is told to.
type fakeAgent struct {
	mu      sync.Mutex
	metrics string
	err     error
	policy  string
	resized map[string]uint64
	hangs   bool
}

func (f *fakeAgent) answer(ctx context.Context) error {
	if f.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.err
}

func (f *fakeAgent) GetMetrics(ctx context.Context, _ *agent.GetMetricsRequest) (*agent.Metrics, error) {
	return &agent.Metrics{Metrics: f.metrics}, f.answer(ctx)
}

func (f *fakeAgent) SetPolicy(ctx context.Context, r *agent.SetPolicyRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.policy = r.GetPolicy()
	return &emptypb.Empty{}, f.answer(ctx)
}

func (f *fakeAgent) LoadPolicyFragment(ctx context.Context, r *agent.LoadPolicyFragmentRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.policy += string(r.GetFragment())
	return &emptypb.Empty{}, f.answer(ctx)
}

func (f *fakeAgent) GetVolumeStats(ctx context.Context, r *agent.VolumeStatsRequest) (*agent.VolumeStatsResponse, error) {
	if r.GetVolumeGuestPath() != "/guest/data" {
		return nil, status.Error(codes.NotFound, "no such volume")
	}
	return &agent.VolumeStatsResponse{
		Usage:           []*agent.VolumeUsage{{Available: 1, Total: 3, Used: 2, Unit: agent.VolumeUsage_BYTES}},
		VolumeCondition: &agent.VolumeCondition{Message: "fi\x1bne"},
	}, f.answer(ctx)
}

func (f *fakeAgent) ResizeVolume(ctx context.Context, r *agent.ResizeVolumeRequest) (*emptypb.Empty, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.resized == nil {
		f.resized = map[string]uint64{}
	}
	f.resized[r.GetVolumeGuestPath()] = r.GetSize()
	return &emptypb.Empty{}, f.answer(ctx)
}

func (f *fakeAgent) GetIPTables(context.Context, *agent.GetIPTablesRequest) (*agent.GetIPTablesResponse, error) {
	return nil, status.Error(codes.Unimplemented, "the guest has no packet filter")
}

func (f *fakeAgent) SetIPTables(_ context.Context, r *agent.SetIPTablesRequest) (*agent.SetIPTablesResponse, error) {
	return &agent.SetIPTablesResponse{Data: r.GetData()}, nil
}

type site struct {
	t   *testing.T
	cfg Config
	srv *Server
}

func open(t *testing.T, cfg Config) *site {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.AgentURL = "vsock://77:1024"
	srv, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(cfg.Dir); len(left) > 0 {
			t.Errorf("%v is left", left)
		}
	})
	return &site{t, cfg, srv}
}

// do sends one request.
func (s *site) do(method, url, body string) (int, string) {
	s.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return Dial(ctx, s.cfg.Dir)
	}}}
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://shim"+url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(text))
}

func (s *site) expect(method, url, body string, code int, text string) {
	s.t.Helper()
	if got, said := s.do(method, url, body); got != code || !strings.Contains(said, text) {
		s.t.Errorf("%s %s: %d %q, expected %d and %q", method, url, got, said, code, text)
	}
}

func TestPaths(t *testing.T) {
	a := &fakeAgent{}
	s := open(t, Config{Agent: func() Agent { return a }, Volume: func(p string) (string, error) {
		if p != "/var/lib/kubelet/vol" {
			return "", errNoVolumes
		}
		return "/guest/data", nil
	}})
	s.expect("GET", "/agent-url", "", 200, "vsock://77:1024")
	s.expect("GET", "/", "", 404, "URL NOT FOUND")
	s.expect("GET", "/debug/pprof/", "", 404, "URL NOT FOUND")
	s.expect("DELETE", "/policy", "", 405, "does not take DELETE")
	s.expect("PUT", "/policy", "package agent_policy", 200, "")
	if a.policy != "package agent_policy" {
		t.Errorf("the guest got the policy %q", a.policy)
	}
	s.expect("POST", "/policy-fragments", "+signed", 200, "")
	if a.policy != "package agent_policy+signed" {
		t.Errorf("the guest got the fragment as %q", a.policy)
	}
	s.expect("POST", "/policy-fragments", "", 400, "none in it")
	s.expect("POST", "/policy-fragments", strings.Repeat("x", maxFragment+1), 413, "too large")
	s.expect("PUT", "/policy", "", 400, "none in it")
	s.expect("PUT", "/policy", strings.Repeat("x", maxPolicy+1), 413, "too large")
	for _, method := range []string{"GET", "POST"} {
		code, text := s.do(method, "/direct-volume/stats?path=/var/lib/kubelet/vol", "")
		var got volumeStats
		if err := json.Unmarshal([]byte(text), &got); err != nil || code != 200 || len(got.Usage) != 1 || got.Usage[0].Total != 3 ||
			got.Condition.Message != "fine" {
			t.Errorf("%d %s, %v", code, text, err)
		}
	}
	s.expect("GET", "/direct-volume/stats", "", 400, "absolute path")
	s.expect("GET", "/direct-volume/stats?path=/var/../etc", "", 400, "absolute path")
	s.expect("GET", "/direct-volume/stats?path=/other", "", 404, "no direct-assigned volumes")
	s.expect("POST", "/direct-volume/resize", `{"VolumePath":"/var/lib/kubelet/vol","Size":4096}`, 200, "")
	if a.resized["/guest/data"] != 4096 {
		t.Errorf("resized: %v", a.resized)
	}
	s.expect("POST", "/direct-volume/resize", `{"VolumePath":"/var/lib/kubelet/vol"}`, 400, "expected a size")
	s.expect("POST", "/direct-volume/resize", `[]`, 400, "")
	s.expect("GET", "/iptables", "", 501, "no packet filter")
	s.expect("PUT", "/ip6tables", "*filter", 200, "*filter")
	a.err = status.Error(codes.PermissionDenied, "SetPolicyRequest is \x1b[31mblocked by policy")
	s.expect("PUT", "/policy", "package x", 403, "is [31mblocked by policy")
	a.err = status.Error(codes.Unimplemented, "not here")
	s.expect("POST", "/direct-volume/resize", `{"VolumePath":"/var/lib/kubelet/vol","Size":1}`, 501, "not here")
}

func TestWithoutGuest(t *testing.T) {
	s := open(t, Config{Agent: func() Agent { return nil }})
	s.expect("PUT", "/policy", "package x", 503, "not connected")
	s.expect("GET", "/direct-volume/stats?path=/x", "", 404, "no direct-assigned volumes")
	s.expect("GET", "/metrics", "", 200, "cloister_guest_up 0")
	h := open(t, Config{Agent: func() Agent { return &fakeAgent{hangs: true} }, Timeout: 30 * time.Millisecond, Profiles: true})
	h.expect("PUT", "/policy", "package x", 504, "deadline")
	h.expect("GET", "/debug/pprof/goroutine?debug=1", "", 200, "goroutine profile")
}

func TestMetrics(t *testing.T) {
	var d Durations
	d.Observe("grpc.StartContainerRequest", 3*time.Millisecond)
	d.Observe("grpc.StartContainerRequest", time.Second)
	a := &fakeAgent{metrics: "# TYPE kata_guest_load gauge\nkata_guest_load{item=\"load1\"} 0.5\nkata_shim_threads 0\ncloister_guest_up 7\n"}
	s := open(t, Config{Agent: func() Agent { return a }, Durations: &d, Processes: func() []Process {
		return []Process{{"hypervisor", os.Getpid()}, {"swtpm", os.Getppid()}, {"hypervisor", 1}, {"gone", 1 << 30}, {"guest", 1}, {"x y", 1}}
	}})
	code, text := s.do("GET", "/metrics", "")
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text + "\n"))
	if err != nil || code != 200 {
		t.Fatalf("%d, %v:\n%s", code, err, text)
	}
	for _, name := range []string{"kata_shim_threads", "kata_shim_fds", "kata_shim_proc_status", "kata_shim_proc_stat", "kata_hypervisor_threads",
		"cloister_swtpm_fds", "kata_guest_load", "kata_shim_agent_rpc_durations_histogram_milliseconds", "cloister_guest_up"} {
		if families[name] == nil {
			t.Errorf("there is no %s", name)
		}
	}
	if v := families["kata_shim_threads"].GetMetric()[0].GetGauge().GetValue(); v < 1 || len(families["kata_shim_threads"].GetMetric()) != 1 {
		t.Errorf("the shim has %g threads", v)
	}
	if v := families["cloister_guest_up"].GetMetric()[0].GetGauge().GetValue(); v != 1 {
		t.Errorf("the guest is %g", v)
	}
	h := families["kata_shim_agent_rpc_durations_histogram_milliseconds"].GetMetric()[0].GetHistogram()
	if h.GetSampleCount() != 2 || h.GetSampleSum() != 1003 || h.GetBucket()[2].GetCumulativeCount() != 1 {
		t.Errorf("got %v", h)
	}
	for i := range 2 * maxActions {
		d.Observe(strings.Repeat("x", i), 0)
	}
	if len(d.actions) != maxActions {
		t.Errorf("%d actions, expected no more than %d", len(d.actions), maxActions)
	}
}

// TestLongPath has a state directory whose socket has no address, and a link.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(t.TempDir(), "sid", "shim-monitor.sock")
	if err := os.Mkdir(filepath.Dir(at), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, SocketName), at); err != nil { // of one that was killed
		t.Fatal(err)
	}
	s := open(t, Config{Dir: dir, Link: at, Agent: func() Agent { return nil }})
	s.expect("GET", "/agent-url", "", 200, "vsock")
	if st, err := os.Stat(filepath.Join(dir, SocketName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	// The old socket of a killed one is replaced.
	again, err := Start(t.Context(), s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Dir(at)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link's directory: %v", err)
	}
	if err := Cleanup(dir, at); err != nil {
		t.Error("again:", err)
	}
	// What is not ours stays.
	other := filepath.Join(t.TempDir(), "shim-monitor.sock")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), Config{Dir: dir, Link: other, Agent: s.cfg.Agent}); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("got %v", err)
	}
	if err := Cleanup(dir, other); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
	if _, err := Start(t.Context(), Config{Dir: filepath.Join(dir, "none"), Agent: s.cfg.Agent}); err == nil {
		t.Error("a directory that is not there was accepted")
	}
}

// TestConnections opens more connections than there may be.
func TestConnections(t *testing.T) {
	s := open(t, Config{Agent: func() Agent { return nil }})
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range maxConnections + 1 {
		c, err := Dial(t.Context(), s.cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	last := open[maxConnections]
	_ = last.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one connection too many: %v, expected its end", err)
	}
}

// FuzzGuestMetrics: whatever the guest says, who reads the metrics can, and finds none of the host's names in it.
func FuzzGuestMetrics(f *testing.F) {
	for _, seed := range []string{
		"# HELP kata_agent_threads x\n# TYPE kata_agent_threads gauge\nkata_agent_threads 1\n",
		"kata_guest_load{item=\"a\",item=\"b\"} 1\n", "kata_guest_load{item=\"a\\x\"} 1\n", "kata_guest_load 1.2.3\n",
		"process_x{a=\"b\",} 0x1p-2\n", "kata_guest_a NaN\n# TYPE kata_guest_a counter\n", "kata_guest_a{le=\"x\"} 1_000\n", "kata_hypervisor_fds 3\n",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out := filterGuest(text)
		p := expfmt.NewTextParser(model.LegacyValidation)
		families, err := p.TextToMetricFamilies(strings.NewReader(out))
		if err != nil {
			t.Fatalf("%q became %q: %v", text, out, err)
		}
		for name := range families {
			if strings.HasPrefix(name, "kata_shim") || strings.HasPrefix(name, "kata_hypervisor") || name == guestUp {
				t.Errorf("the guest speaks for the host: %q", out)
			}
		}
	})
}
