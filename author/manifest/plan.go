package manifest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
)

// Sizes of the guest: what the pod asks for plus room for the guest itself and
// for the images, which are unpacked into memory.
const (
	defaultVCPUs     = 2
	defaultMemoryMiB = 2048
	overheadMiB      = 1024
	maxVCPUs         = 256
)

// nameserver is the resolver of the guest's user-mode network.
const nameserver = "10.0.2.3"

const (
	guestRoot    = "/run/kata-containers"
	sharedRoot   = guestRoot + "/shared/containers"
	sandboxShm   = guestRoot + "/sandbox/shm"
	ephemeralDir = guestRoot + "/sandbox/ephemeral"
)

// Plan resolves the images of a manifest and writes the requests that start the
// pod. The same manifest and digests give the same plan.
func Plan(ctx context.Context, m *Manifest, r ImageResolver) (*launch.Plan, error) {
	pod := m.Pod
	plan := &launch.Plan{
		APIVersion: launch.APIVersion,
		Name:       pod.Meta.Name,
		Namespace:  m.namespace(),
		Hostname:   m.hostname(),
	}
	b := &builder{manifest: m, plan: plan, storages: volumeStorages(m)}
	images := map[string]Image{}
	var problems []error
	for _, set := range []struct {
		init bool
		list []kubernetes.Container
	}{{true, pod.Spec.InitContainers}, {false, pod.Spec.Containers}} {
		for i := range set.list {
			x := &set.list[i]
			img, ok := images[x.Image]
			if !ok {
				var err error
				if img, err = r.Resolve(ctx, x.Image); err != nil {
					problems = append(problems, fmt.Errorf("container %q: %w", x.Name, err))
					continue
				}
				images[x.Image] = img
			}
			if err := b.container(x, set.init, img); err != nil {
				problems = append(problems, fmt.Errorf("container %q: %w", x.Name, err))
			}
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("planning pod %s: %w", pod.Meta.Name, err)
	}
	plan.Sandbox = b.sandbox()
	var err error
	if plan.Resources, err = guestSize(pod); err != nil {
		return nil, fmt.Errorf("planning pod %s: %w", pod.Meta.Name, err)
	}
	if err := plan.Validate(); err != nil {
		return nil, fmt.Errorf("planning pod %s: %w", pod.Meta.Name, err)
	}
	return plan, nil
}

// builder writes the requests of one pod.
type builder struct {
	manifest *Manifest
	plan     *launch.Plan
	storages map[string]*agent.Storage // emptyDir volumes by name
}

func (b *builder) sandbox() *agent.CreateSandboxRequest {
	return &agent.CreateSandboxRequest{
		Hostname:  b.plan.Hostname,
		Dns:       []string{"nameserver " + nameserver},
		SandboxId: b.sandboxID(),
		Storages: []*agent.Storage{{
			Driver:     "ephemeral",
			Source:     "shm",
			Fstype:     "tmpfs",
			Options:    []string{"noexec", "nosuid", "nodev", "mode=1777", "size=67108864"},
			MountPoint: sandboxShm,
		}},
	}
}

func (b *builder) sandboxID() string {
	return digest("sandbox", b.plan.Namespace, b.plan.Name)
}

func (b *builder) container(x *kubernetes.Container, init bool, img Image) error {
	seed, err := x.Digest()
	if err != nil {
		return fmt.Errorf("making the container id: %w", err)
	}
	id := digest("container", b.plan.Namespace, b.plan.Name, x.Name, img.Ref, seed)
	spec, err := b.spec(x, id, img)
	if err != nil {
		return err
	}
	pull, err := guestPull(id, img.Ref, spec.Annotations)
	if err != nil {
		return err
	}
	req := &agent.CreateContainerRequest{
		ContainerId:  id,
		ExecId:       id,
		Storages:     []*agent.Storage{pull},
		OCI:          spec,
		SandboxPidns: b.manifest.Pod.Spec.ShareProcessNamespace,
	}
	if err := b.mounts(x, id, req); err != nil {
		return err
	}
	b.plan.Containers = append(b.plan.Containers, launch.Container{
		Name:          x.Name,
		Init:          init,
		Image:         img.Ref,
		TTY:           x.TTY,
		Stdin:         x.Stdin,
		Create:        req,
		RestartPolicy: b.manifest.restartPolicy(init),
	})
	return nil
}

// guestPull is the root file system of a container: pulled by the guest, bound by
// the digest in its source.
func guestPull(id, ref string, annotations map[string]string) (*agent.Storage, error) {
	option, err := json.Marshal(map[string]any{"metadata": annotations})
	if err != nil {
		return nil, fmt.Errorf("writing image metadata: %w", err)
	}
	return &agent.Storage{
		Driver:        "image_guest_pull",
		DriverOptions: []string{"image_guest_pull=" + string(option)},
		Source:        ref,
		Fstype:        "overlay",
		MountPoint:    rootfs(id),
	}, nil
}

func rootfs(id string) string { return guestRoot + "/" + id + "/rootfs" }

// digest is the hexadecimal SHA-256 of its parts, kept apart by their lengths.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (m *Manifest) namespace() string { return cmp.Or(m.Pod.Meta.Namespace, "default") }

func (m *Manifest) hostname() string { return cmp.Or(m.Pod.Spec.Hostname, shortName(m.Pod.Meta.Name)) }

// shortName cuts a name to the length of a host name.
func shortName(s string) string {
	if len(s) <= 63 {
		return s
	}
	s = s[:63]
	for s[len(s)-1] == '-' || s[len(s)-1] == '.' {
		s = s[:len(s)-1]
	}
	return s
}

// restartPolicy of a container: init containers are run again only after failure.
func (m *Manifest) restartPolicy(init bool) string {
	switch {
	case m.Pod.Spec.RestartPolicy == "Never":
		return launch.RestartNever
	case init || m.Pod.Spec.RestartPolicy == "OnFailure":
		return launch.RestartOnFailure
	}
	return launch.RestartAlways
}

// guestSize is the size of the virtual machine.
func guestSize(p *kubernetes.Workload) (launch.Resources, error) {
	var cpu, memory int64
	allLimited := true
	for _, x := range p.Spec.Containers {
		c, err := limit(x.Resources, "cpu", kubernetes.Quantity.Milli)
		if err != nil {
			return launch.Resources{}, err
		}
		mem, err := limit(x.Resources, "memory", kubernetes.Quantity.Bytes)
		if err != nil {
			return launch.Resources{}, err
		}
		allLimited = allLimited && mem > 0
		cpu += c
		memory += mem
	}
	size := launch.Resources{VCPUs: defaultVCPUs, MemoryMiB: defaultMemoryMiB}
	if n := int((cpu + 999) / 1000); n > size.VCPUs {
		size.VCPUs = n
	}
	if size.VCPUs > maxVCPUs {
		return size, fmt.Errorf("the containers ask for %d CPUs, the limit is %d", size.VCPUs, maxVCPUs)
	}
	mib := int((memory+1<<20-1)>>20) + overheadMiB
	if allLimited || mib > size.MemoryMiB {
		size.MemoryMiB = max(mib, overheadMiB)
	}
	return size, nil
}

func limit(r kubernetes.Resources, name string, parse func(kubernetes.Quantity) (int64, error)) (int64, error) {
	q, ok := r.Limits[name]
	if !ok {
		return 0, nil
	}
	return parse(q)
}
