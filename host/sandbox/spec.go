package sandbox

import (
	"encoding/json"
	"maps"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister/cloister/host/cri"
	"github.com/cloister/cloister/host/volume"
	pb "github.com/cloister/cloister/wire/agent"
)

// Annotations that are for the host and too large, or too telling, for the guest's specification.
var hostAnnotations = []string{
	"io.katacontainers.config.hypervisor.cc_init_data", "io.katacontainers.config.agent.policy",
	"cloister.dev/initdata", "cloister.dev/policy", "cloister.dev/policy-fragments",
}

// terminationPath is the kubelet's annotation of a container with the path of its termination log.
const terminationPath = "io.kubernetes.container.terminationMessagePath"

// guestSpec turns the specification of a container into what the guest gets (runtime-shim.md sections 7 and 7.1): everything that is
// about the host is left out, because the guest has its own, and because policies refuse it.
func guestSpec(s *specs.Spec, p *volume.Prepared, kind cri.Kind, bundle string, seccomp bool) *pb.Spec {
	annotations := maps.Clone(s.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	for _, k := range hostAnnotations {
		delete(annotations, k)
	}
	annotations[cri.AnnotationKind] = string(kind)
	annotations[cri.AnnotationBundle] = bundle
	if path, ok := networkNamespace(s); ok && kind != cri.KindContainer {
		annotations[cri.AnnotationNetwork] = path
	}
	if p.TerminationLog != "" {
		// The guest finds the message by it. The kubelet says it, but containerd passes on only what it was told to.
		annotations[terminationPath] = p.TerminationLog
	}
	out := &pb.Spec{
		Version: s.Version, Hostname: s.Hostname, Annotations: annotations, Process: guestProcess(s.Process),
		Root: &pb.Root{Path: p.Root, Readonly: p.RootReadonly}, Linux: guestLinux(s.Linux, p.LinuxDevices, seccomp),
	}
	out.Mounts = guestMounts(p.Mounts)
	return out
}

func guestMounts(list []specs.Mount) []*pb.Mount {
	var out []*pb.Mount
	for _, m := range list {
		out = append(out, &pb.Mount{Destination: m.Destination, Source: m.Source, Type: m.Type, Options: m.Options})
	}
	return out
}

func guestProcess(p *specs.Process) *pb.Process {
	if p == nil {
		return nil
	}
	out := &pb.Process{
		Terminal: p.Terminal, Args: p.Args, Env: p.Env, Cwd: p.Cwd, NoNewPrivileges: p.NoNewPrivileges,
		ApparmorProfile: "", // the guest has no profiles
		User:            &pb.User{UID: p.User.UID, GID: p.User.GID, AdditionalGids: p.User.AdditionalGids},
	}
	if p.ConsoleSize != nil {
		out.ConsoleSize = &pb.Box{Height: uint32(p.ConsoleSize.Height), Width: uint32(p.ConsoleSize.Width)}
	}
	if p.OOMScoreAdj != nil {
		out.OOMScoreAdj = int64(*p.OOMScoreAdj)
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &pb.LinuxCapabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		out.Rlimits = append(out.Rlimits, &pb.POSIXRlimit{Type: r.Type, Hard: r.Hard, Soft: r.Soft})
	}
	return out
}

func guestLinux(l *specs.Linux, devices []specs.LinuxDevice, seccomp bool) *pb.Linux {
	if l == nil {
		return nil
	}
	out := &pb.Linux{
		Sysctl: l.Sysctl, CgroupsPath: l.CgroupsPath, MaskedPaths: l.MaskedPaths, ReadonlyPaths: l.ReadonlyPaths,
		Resources: guestResources(l.Resources),
	}
	for _, n := range l.Namespaces {
		switch n.Type {
		case specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.CgroupNamespace:
			// The paths are the host's; the guest joins its own.
			out.Namespaces = append(out.Namespaces, &pb.LinuxNamespace{Type: string(n.Type)})
		}
	}
	for _, d := range devices {
		x := &pb.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor}
		if d.FileMode != nil {
			x.FileMode = uint32(*d.FileMode)
		}
		if d.UID != nil {
			x.UID = *d.UID
		}
		if d.GID != nil {
			x.GID = *d.GID
		}
		out.Devices = append(out.Devices, x)
	}
	if seccomp && l.Seccomp != nil {
		out.Seccomp = guestSeccomp(l.Seccomp)
	}
	return out
}

// guestResources keeps processor, memory and huge pages; devices, block I/O and network are the host's.
func guestResources(r *specs.LinuxResources) *pb.LinuxResources {
	if r == nil {
		return nil
	}
	out := &pb.LinuxResources{}
	if m := r.Memory; m != nil {
		out.Memory = &pb.LinuxMemory{
			Limit: value(m.Limit), Reservation: value(m.Reservation), Swap: value(m.Swap), Swappiness: value(m.Swappiness),
			DisableOOMKiller: value(m.DisableOOMKiller),
		}
	}
	if c := r.CPU; c != nil {
		// The guest numbers its processors itself: cpuset stays here.
		out.CPU = &pb.LinuxCPU{
			Shares: value(c.Shares), Quota: value(c.Quota), Period: value(c.Period),
			RealtimeRuntime: value(c.RealtimeRuntime), RealtimePeriod: value(c.RealtimePeriod),
		}
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &pb.LinuxHugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	return out
}

func guestSeccomp(s *specs.LinuxSeccomp) *pb.LinuxSeccomp {
	out := &pb.LinuxSeccomp{DefaultAction: string(s.DefaultAction)}
	for _, a := range s.Architectures {
		out.Architectures = append(out.Architectures, string(a))
	}
	for _, f := range s.Flags {
		out.Flags = append(out.Flags, string(f))
	}
	for _, c := range s.Syscalls {
		x := &pb.LinuxSyscall{Names: c.Names, Action: string(c.Action)}
		if c.ErrnoRet != nil {
			x.ErrnoRet = &pb.LinuxSyscall_Errnoret{Errnoret: uint32(*c.ErrnoRet)}
		}
		for _, a := range c.Args {
			x.Args = append(x.Args, &pb.LinuxSeccompArg{Index: uint64(a.Index), Value: a.Value, ValueTwo: a.ValueTwo, Op: string(a.Op)})
		}
		out.Syscalls = append(out.Syscalls, x)
	}
	return out
}

// sharesPIDs says whether the containers of the pod see each other's processes: then they name the sandbox's namespace.
func sharesPIDs(s *specs.Spec) bool {
	if s.Linux == nil {
		return false
	}
	for _, n := range s.Linux.Namespaces {
		if n.Type == specs.PIDNamespace && n.Path != "" {
			return true
		}
	}
	return false
}

// networkNamespace is the path of the pod's network namespace; ok is false when the pod shares the host's.
func networkNamespace(s *specs.Spec) (path string, ok bool) {
	if s.Linux == nil {
		return "", false
	}
	for _, n := range s.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			return n.Path, true
		}
	}
	return "", false
}

// Resources reads the JSON of an update request.
func Resources(text []byte) (*specs.LinuxResources, error) {
	var r specs.LinuxResources
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

func value[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}
