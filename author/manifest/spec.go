package manifest

import (
	"fmt"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/wire/agent"
)

const ociVersion = "1.1.0"

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var maskedPaths = []string{
	"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
	"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
}

var readonlyPaths = []string{"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// spec writes the OCI specification of a container without volumes.
func (b *builder) spec(x *kubernetes.Container, id string, img Image) (*agent.Spec, error) {
	pod := b.manifest.Pod
	process, err := b.process(x, img.Config)
	if err != nil {
		return nil, err
	}
	resources, err := linuxResources(x.Resources)
	if err != nil {
		return nil, err
	}
	sysctls := map[string]string{}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		sysctls[s.Name] = string(s.Value)
	}
	return &agent.Spec{
		Version: ociVersion,
		Process: process,
		Root:    &agent.Root{Path: rootfs(id), Readonly: x.Security.ReadOnlyRoot},
		Annotations: map[string]string{
			"io.katacontainers.pkg.oci.container_type": "pod_container",
			"io.kubernetes.cri.container-name":         x.Name,
			"io.kubernetes.cri.container-type":         "container",
			"io.kubernetes.cri.image-name":             img.Ref,
			"io.kubernetes.cri.sandbox-id":             b.sandboxID(),
			"io.kubernetes.cri.sandbox-name":           b.plan.Name,
			"io.kubernetes.cri.sandbox-namespace":      b.plan.Namespace,
		},
		Mounts: baseMounts(),
		Linux: &agent.Linux{
			CgroupsPath:   "/cloister/" + id,
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
			Sysctl:        sysctls,
			Resources:     resources,
			Namespaces: []*agent.LinuxNamespace{
				{Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"},
			},
		},
	}, nil
}

func (b *builder) process(x *kubernetes.Container, img ImageConfig) (*agent.Process, error) {
	vars, values, err := b.manifest.containerEnv(x)
	if err != nil {
		return nil, err
	}
	args, err := processArgs(x, img, values)
	if err != nil {
		return nil, err
	}
	id, err := resolveIdentity(b.manifest.Pod.Spec.SecurityContext, x.Security, img.User)
	if err != nil {
		return nil, err
	}
	env := img.Env
	if len(env) == 0 {
		env = []string{defaultPath}
	}
	own := []variable{}
	if x.TTY {
		own = append(own, variable{"TERM", "xterm"})
	}
	own = append(own, variable{"HOSTNAME", b.plan.Hostname})
	cwd := img.WorkingDir
	if x.WorkingDir != "" {
		cwd = x.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	caps := capabilities(x.Security.Capabilities)
	return &agent.Process{
		Terminal:        x.TTY,
		User:            &agent.User{UID: id.uid, GID: id.gid, AdditionalGids: id.groups},
		Args:            args,
		Env:             mergeEnv(env, append(own, vars...)),
		Cwd:             cwd,
		Capabilities:    &agent.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		NoNewPrivileges: x.Security.AllowPrivilegeEscalation != nil && !*x.Security.AllowPrivilegeEscalation,
	}, nil
}

func baseMounts() []*agent.Mount {
	m := func(dest, typ, source string, options ...string) *agent.Mount {
		return &agent.Mount{Destination: dest, Type: typ, Source: source, Options: options}
	}
	return []*agent.Mount{
		m("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
		m("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
		m("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		m("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
		m("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		m("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
	}
}

const cpuPeriod = 100_000

// linuxResources translates limits as Kubernetes does.
func linuxResources(r kubernetes.Resources) (*agent.LinuxResources, error) {
	out := &agent.LinuxResources{}
	cpuLimit, err := limit(r, "cpu", kubernetes.Quantity.Milli)
	if err != nil {
		return nil, fmt.Errorf("cpu limit: %w", err)
	}
	memLimit, err := limit(r, "memory", kubernetes.Quantity.Bytes)
	if err != nil {
		return nil, fmt.Errorf("memory limit: %w", err)
	}
	request := cpuLimit
	if q, ok := r.Requests["cpu"]; ok {
		if request, err = q.Milli(); err != nil {
			return nil, fmt.Errorf("cpu request: %w", err)
		}
	}
	if memLimit > 0 {
		out.Memory = &agent.LinuxMemory{Limit: memLimit, Swap: memLimit}
	}
	if request > 0 || cpuLimit > 0 {
		out.CPU = &agent.LinuxCPU{}
		if request > 0 {
			out.CPU.Shares = uint64(min(max(2, request*1024/1000), 262144))
		}
		if cpuLimit > 0 {
			out.CPU.Quota = max(1000, cpuLimit*cpuPeriod/1000)
			out.CPU.Period = cpuPeriod
		}
	}
	return out, nil
}
