package shim

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podState is the pod as the sandbox service sees it.
type podState struct {
	made    bool // CreateSandbox was called
	pod     podConfig
	created time.Time
	exited  time.Time
	lost    bool          // the VM ended by itself
	ended   chan struct{} // closed when the pod has ended
}

// Pod is the sandbox service (containerd.runtime.sandbox.v1): with `sandboxer = "shim"` containerd asks the shim for the pod itself, and
// there is no pause container.
type Pod struct{ service *Service }

// CreateSandbox notes what the pod shall be.
func (p *Pod) CreateSandbox(_ context.Context, r *api.CreateSandboxRequest) (*api.CreateSandboxResponse, error) {
	s := p.service
	if r.GetSandboxID() != s.cfg.ID {
		return nil, invalid("sandbox %.100q: this shim serves %s", r.GetSandboxID(), s.cfg.ID)
	}
	pod, err := podSpec(r)
	if err != nil {
		return nil, invalid("%v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.podState.made || s.pod != nil {
		return nil, precondition("sandbox %s was created already", s.cfg.ID)
	}
	s.podState = podState{made: true, pod: pod, ended: make(chan struct{})}
	return &api.CreateSandboxResponse{}, nil
}

// podConfig is what there is to know before the pod starts.
type podConfig struct {
	spec  *specs.Spec
	netns string
	dns   []string
}

// podSpec is the specification of the pod's own container that containerd would have written.
func podSpec(r *api.CreateSandboxRequest) (podConfig, error) {
	spec := &specs.Spec{Version: specs.Version, Annotations: map[string]string{}, Linux: &specs.Linux{}, Process: &specs.Process{}}
	var dns []string
	if o := r.GetOptions(); o != nil && strings.HasSuffix(o.GetTypeUrl(), "PodSandboxConfig") {
		var c criapi.PodSandboxConfig
		if err := proto.Unmarshal(o.GetValue(), &c); err != nil {
			return podConfig{}, fmt.Errorf("reading the pod's configuration: %w", err)
		}
		fillPodSpec(spec, r.GetSandboxID(), &c)
		dns = dnsLines(c.GetDnsConfig())
	}
	for k, v := range r.GetAnnotations() {
		spec.Annotations[k] = v
	}
	return podConfig{spec: spec, netns: r.GetNetnsPath(), dns: dns}, nil
}

func fillPodSpec(spec *specs.Spec, id string, c *criapi.PodSandboxConfig) {
	spec.Hostname = c.GetHostname()
	for k, v := range c.GetAnnotations() {
		spec.Annotations[k] = v
	}
	a := spec.Annotations
	a["io.kubernetes.cri.container-type"], a["io.kubernetes.cri.sandbox-id"] = "sandbox", id
	a["io.kubernetes.cri.sandbox-name"] = c.GetMetadata().GetName()
	a["io.kubernetes.cri.sandbox-namespace"] = c.GetMetadata().GetNamespace()
	a["io.kubernetes.cri.sandbox-uid"] = c.GetMetadata().GetUid()
	if parent := c.GetLinux().GetCgroupParent(); parent != "" {
		spec.Linux.CgroupsPath = cgroupsPath(parent, id)
	}
	if res := c.GetLinux().GetResources(); res != nil {
		a["io.kubernetes.cri.sandbox-cpu-period"] = fmt.Sprint(res.GetCpuPeriod())
		a["io.kubernetes.cri.sandbox-cpu-quota"] = fmt.Sprint(res.GetCpuQuota())
		a["io.kubernetes.cri.sandbox-cpu-shares"] = fmt.Sprint(res.GetCpuShares())
		a["io.kubernetes.cri.sandbox-memory"] = fmt.Sprint(res.GetMemoryLimitInBytes())
	}
	if o := c.GetLinux().GetSecurityContext().GetNamespaceOptions(); o.GetNetwork() == criapi.NamespaceMode_POD {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
}

// cgroupsPath is where the pod's group is below the kubelet's, in the form that the parent has.
func cgroupsPath(parent, id string) string {
	if strings.HasSuffix(parent, ".slice") {
		return parent[strings.LastIndex(parent, "/")+1:] + ":cri-containerd:" + id
	}
	return "/" + strings.Trim(parent, "/") + "/" + id
}

// dnsLines is the resolver configuration.
func dnsLines(d *criapi.DNSConfig) []string {
	var lines []string
	if s := d.GetSearches(); len(s) > 0 {
		lines = append(lines, "search "+strings.Join(s, " "))
	}
	for _, s := range d.GetServers() {
		lines = append(lines, "nameserver "+s)
	}
	if o := d.GetOptions(); len(o) > 0 {
		lines = append(lines, "options "+strings.Join(o, " "))
	}
	return lines
}

// StartSandbox starts the virtual machine.
func (p *Pod) StartSandbox(ctx context.Context, r *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	s := p.service
	st, err := p.state(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	over := !s.podState.exited.IsZero()
	s.mu.Unlock()
	if over {
		return nil, precondition("sandbox %s has ended already", s.cfg.ID)
	}
	pod, err := s.startPod(ctx, st.pod, nil)
	if err != nil {
		s.log.Error("starting the sandbox", "sandbox", s.cfg.ID, "error", err)
		return nil, answer(err)
	}
	now := time.Now()
	s.mu.Lock()
	s.podState.created = now
	s.mu.Unlock()
	return &api.StartSandboxResponse{Pid: uint32(pod.PID()), CreatedAt: stamp(now)}, nil
}

func (p *Pod) state(id string) (podState, error) {
	s := p.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.podState.made || id != s.cfg.ID {
		return podState{}, notFound("sandbox %.100q was not created", id)
	}
	return s.podState, nil
}

// podEnded is called when the VM has ended; lost says that it did so by itself.
func (s *Service) podEnded(lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.podState.made && s.podState.exited.IsZero() {
		s.podState.exited, s.podState.lost = time.Now(), lost
		close(s.podState.ended)
	}
}

// Platform is what runs inside.
func (p *Pod) Platform(context.Context, *api.PlatformRequest) (*api.PlatformResponse, error) {
	return &api.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: runtime.GOARCH}}, nil
}

// StopSandbox ends the virtual machine and removes what was made for it on the host: the pod's network is taken down next.
func (p *Pod) StopSandbox(ctx context.Context, r *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	s := p.service
	if _, err := p.state(r.GetSandboxID()); err != nil {
		return nil, err
	}
	if t := r.GetTimeoutSecs(); t > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(t)*time.Second)
		defer cancel()
	}
	if err := s.stopPod(ctx); err != nil {
		return nil, answer(err)
	}
	s.podEnded(false) // it may never have run
	return &api.StopSandboxResponse{}, nil
}

// WaitSandbox waits for the end of the virtual machine.
func (p *Pod) WaitSandbox(ctx context.Context, r *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	st, err := p.state(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	select {
	case <-st.ended:
	case <-ctx.Done():
		return nil, answer(ctx.Err())
	}
	if st, err = p.state(r.GetSandboxID()); err != nil {
		return nil, err
	}
	out := &api.WaitSandboxResponse{ExitedAt: stamp(st.exited)}
	if st.lost {
		out.ExitStatus = lostCode
	}
	return out, nil
}

// SandboxStatus tells about the pod. The words of the state are containerd's.
func (p *Pod) SandboxStatus(_ context.Context, r *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	st, err := p.state(r.GetSandboxID())
	if err != nil {
		return nil, err
	}
	s := p.service
	s.mu.Lock()
	pod := s.pod
	s.mu.Unlock()
	out := &api.SandboxStatusResponse{SandboxID: s.cfg.ID, State: "SANDBOX_NOTREADY", CreatedAt: stamp(st.created), ExitedAt: stamp(st.exited)}
	if pod != nil && st.exited.IsZero() && !st.created.IsZero() {
		out.State, out.Pid = "SANDBOX_READY", uint32(pod.PID())
	}
	if r.GetVerbose() && pod != nil {
		out.Info = pod.Info()
	}
	return out, nil
}

// PingSandbox answers while the shim lives.
func (p *Pod) PingSandbox(_ context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	_, err := p.state(r.GetSandboxID())
	return &api.PingResponse{}, err
}

// ShutdownSandbox removes the pod and ends the shim.
func (p *Pod) ShutdownSandbox(ctx context.Context, r *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	s := p.service
	if r.GetSandboxID() != s.cfg.ID {
		return nil, notFound("sandbox %.100q is not here", r.GetSandboxID())
	}
	err := s.shutPod(ctx)
	s.podEnded(false)
	if err != nil {
		s.log.Error("removing the sandbox", "sandbox", s.cfg.ID, "error", err)
		return nil, answer(err)
	}
	s.cfg.Exit()
	return &api.ShutdownSandboxResponse{}, nil
}

// SandboxMetrics is what the pod uses on the host.
func (p *Pod) SandboxMetrics(ctx context.Context, r *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	if _, err := p.state(r.GetSandboxID()); err != nil {
		return nil, err
	}
	s := p.service
	s.mu.Lock()
	pod := s.pod
	s.mu.Unlock()
	if pod == nil {
		return nil, precondition("sandbox %s does not run", s.cfg.ID)
	}
	a, err := podMetrics(ctx, pod)
	if err != nil {
		return nil, answer(err)
	}
	return &api.SandboxMetricsResponse{Metrics: &types.Metric{Timestamp: stamp(time.Now()), ID: s.cfg.ID, Data: a}}, nil
}

// UpdateSandbox has nothing to change: labels and extensions are containerd's own.
func (p *Pod) UpdateSandbox(_ context.Context, r *api.UpdateSandboxRequest) (*api.UpdateSandboxResponse, error) {
	_, err := p.state(r.GetSandboxID())
	return &api.UpdateSandboxResponse{}, err
}
