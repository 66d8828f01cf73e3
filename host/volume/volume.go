// Package volume turns what containerd and the kubelet say about a container's files into what the guest's agent understands: its root
// file system, its mounts and its devices.
//
// There are two worlds. A sandboxed guest sees directories of the host through a shared directory (package share), so that a volume is
// what it is with any other runtime. A confidential guest sees nothing of the host's files: images are pulled in the guest, memory
// and scratch volumes are made there, small configuration is copied in, and everything else is a disk or refused, with the reason
// and what to use instead. docs/reference/volumes.md has the whole table.
//
// Who can write into a volume can put symbolic links there. A source is therefore opened once, below the kubelet's directories without
// following any link, and all decisions, copies and mounts are made with the open file.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/share"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/wire/agent"
)

// Directories of the guest, as the agent's protocol has them.
const (
	guestRoot      = "/run/kata-containers"
	guestShared    = share.GuestDir
	guestShm       = guestRoot + "/sandbox/shm"
	guestEphemeral = guestRoot + "/sandbox/ephemeral"
	guestStorage   = guestRoot + "/sandbox/storage"
	guestLocal     = guestRoot + "/sandbox/local"
)

// Storage drivers of the agent.
const (
	driverEphemeral = "ephemeral"
	driverLocal     = "local"
	driverImage     = "image_guest_pull"
	driverMMIO      = "mmioblk"
)

// Mount is a mount of a root file system as containerd describes it.
type Mount = share.Mount

// Options are what a sandbox's volumes need.
type Options struct {
	// Dir is made by New and removed by Close; it notes what Cleanup needs after a crash.
	Dir       string
	SandboxID string
	Config    *runtimeconfig.Config
	// Share is the shared directory, nil when there is none. The caller closes it.
	Share *share.Share
	// Disks plugs disks into the VM; nil is none.
	Disks vmm.Plug
	// CopyFile sends a file to the guest; nil is none. It is called from several goroutines.
	CopyFile func(context.Context, *agent.CopyFileRequest) error
	// ScratchSize is the size in bytes of the disk for what each container writes over layers that the host attaches; 0 is none.
	ScratchSize int64
	// DirectDir is where direct-assigned volumes are announced; empty is DirectDir's default, DefaultDirectDir.
	DirectDir string
	Logger    *slog.Logger
}

// Request is a container to be made.
type Request struct {
	ID string
	// Sandbox is the pod's own container, which needs no image.
	Sandbox bool
	Bundle  string
	Spec    *specs.Spec
	Rootfs  []Mount
	// ImageVolumes says that the guest can make the directories that the image declares as volumes.
	ImageVolumes bool
}

// Prepared is what goes into the agent's request.
type Prepared struct {
	// Root is the path of the root file system in the guest.
	Root         string
	RootReadonly bool
	Storages     []*agent.Storage
	Devices      []*agent.Device
	// Mounts and LinuxDevices replace those of the specification.
	Mounts       []specs.Mount
	LinuxDevices []specs.LinuxDevice
	// TerminationLog is where the container sees its termination log when that is a copy, else "".
	TerminationLog string
}

// Set is the volumes of one sandbox. Its methods can be used from several goroutines, for different containers.
type Set struct {
	opts Options
	log  *slog.Logger
	// life ends with Close; what follows the kubelet's changes works under it.
	life context.Context
	end  context.CancelFunc

	mu         sync.Mutex
	closed     bool
	containers map[string]*held
	watch      *watcher

	plug  sync.Mutex // held while disks come and go
	disks map[string]*disk
}

// held is what one container has.
type held struct {
	shared  []string // names in the shared directory
	disks   []string // keys of disks
	copies  []*mirror
	termLog *os.File // the host's termination log when the guest has a copy
	logPath string
	guest   map[string]string // host path of a volume to its path in the guest
}

// New prepares for the volumes of a sandbox.
func New(o Options) (*Set, error) {
	if !filepath.IsAbs(o.Dir) || o.Config == nil || o.SandboxID == "" {
		return nil, fmt.Errorf("volumes of sandbox %q: an absolute directory and a configuration are needed", o.SandboxID)
	}
	if o.Config.Confidential() && o.Share != nil {
		return nil, errors.New("volumes: a confidential sandbox has no shared directory")
	}
	if o.DirectDir == "" {
		o.DirectDir = DefaultDirectDir
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	s := &Set{opts: o, log: o.Logger, containers: map[string]*held{}, disks: map[string]*disk{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Sandbox returns the storages of the CreateSandbox request, by the specification of the pod's own container.
func (s *Set) Sandbox(spec *specs.Spec) ([]*agent.Storage, error) {
	size, err := shmSize(spec)
	if err != nil {
		return nil, err
	}
	var out []*agent.Storage
	if s.opts.Share != nil {
		out = append(out, share.Storage())
	}
	return append(out, &agent.Storage{
		Driver: driverEphemeral, Source: "shm", Fstype: "tmpfs", MountPoint: guestShm,
		Options: []string{"noexec", "nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%d", size)},
	}), nil
}

// Container prepares a container's files. What it has done is undone by Release, or by itself when it fails.
func (s *Set) Container(ctx context.Context, r Request) (_ *Prepared, err error) {
	if err := checkRequest(r); err != nil {
		return nil, err
	}
	h := &held{guest: map[string]string{}}
	s.mu.Lock()
	switch {
	case s.closed:
		err = errors.New("the sandbox has ended")
	case s.containers[r.ID] != nil:
		err = fmt.Errorf("container %s has its volumes already", r.ID)
	default:
		s.containers[r.ID] = h
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Release(context.WithoutCancel(ctx), r.ID))
		}
	}()
	b := &build{set: s, req: r, held: h, out: &Prepared{RootReadonly: r.Spec.Root.Readonly}}
	if err := b.rootfs(ctx); err != nil {
		return nil, fmt.Errorf("root file system of container %s: %w", r.ID, err)
	}
	if err := b.mounts(ctx); err != nil {
		return nil, err
	}
	if err := b.devices(ctx); err != nil {
		return nil, err
	}
	return b.out, nil
}

// build is one call of Container.
type build struct {
	set  *Set
	req  Request
	held *held
	out  *Prepared
	// made are storages of this request by mount point: a volume that is mounted twice needs one.
	made map[string]bool
	// imageVolumes counts those of the image so far.
	imageVolumes int
}

func (b *build) storage(st *agent.Storage) {
	if b.made == nil {
		b.made = map[string]bool{}
	}
	if !b.made[st.GetMountPoint()] {
		b.made[st.GetMountPoint()] = true
		b.out.Storages = append(b.out.Storages, st)
	}
}

const maxContainerMounts = 1024

func checkRequest(r Request) error {
	switch {
	case r.ID == "" || len(r.ID) > 128 || filepath.Base(r.ID) != r.ID || r.ID == "." || r.ID == "..":
		return fmt.Errorf("container ID %.80q", r.ID)
	case r.Spec == nil || r.Spec.Root == nil:
		return fmt.Errorf("container %s: its specification names no root file system", r.ID)
	case len(r.Spec.Mounts) > maxContainerMounts:
		return fmt.Errorf("container %s has %d mounts, at most %d are possible", r.ID, len(r.Spec.Mounts), maxContainerMounts)
	}
	return nil
}

// TerminationLog is the host's file to which the guest's copy of the termination log belongs. ok is false when the guest writes to the
// host's file itself, or there is none.
func (s *Set) TerminationLog(containerID string) (hostPath string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.containers[containerID]
	if h == nil || h.termLog == nil {
		return "", false
	}
	return h.logPath, true
}

// maxTerminationLog is more than the kubelet reads of it (4096 bytes).
const maxTerminationLog = 16 << 10

// WriteTerminationLog puts what the guest's copy holds into the host's file, up to 16 KiB. Without such a file it does nothing.
func (s *Set) WriteTerminationLog(containerID string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.containers[containerID]
	if h == nil || h.termLog == nil {
		return nil
	}
	// The file that was there when the container was made, not what has that name now.
	f, err := os.OpenFile(fdPath(h.termLog), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("opening the termination log: %w", err)
	}
	_, err = f.Write(data[:min(len(data), maxTerminationLog)])
	return errors.Join(err, f.Close())
}

// GuestPath is where the guest has a volume that the host knows by a path, for example for the size of a direct-assigned volume.
func (s *Set) GuestPath(hostPath string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.containers {
		if p, ok := h.guest[filepath.Clean(hostPath)]; ok {
			return p, true
		}
	}
	return "", false
}

// Release gives back what a container had. Volumes of the pod stay. A container that has none is no error. What cannot be given back is
// kept for the next call.
func (s *Set) Release(ctx context.Context, containerID string) error {
	s.mu.Lock()
	h := s.containers[containerID]
	delete(s.containers, containerID)
	w := s.watch
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	var errs []error
	left := &held{}
	for _, m := range h.copies {
		m.stop(w)
	}
	for _, name := range h.shared {
		if err := s.opts.Share.Remove(name); err != nil {
			errs, left.shared = append(errs, err), append(left.shared, name)
		}
	}
	for _, key := range h.disks {
		if err := s.unplug(ctx, key); err != nil {
			errs, left.disks = append(errs, err), append(left.disks, key)
		}
	}
	if h.termLog != nil {
		h.termLog.Close()
	}
	if len(errs) == 0 {
		return nil
	}
	s.mu.Lock()
	if s.containers[containerID] == nil {
		s.containers[containerID] = left
	}
	s.mu.Unlock()
	return fmt.Errorf("volumes of container %s: %w", containerID, errors.Join(errs...))
}

// Close gives back everything and removes the scratch disks. Disks are not unplugged: the VM has ended, or is about to.
func (s *Set) Close(ctx context.Context) error {
	s.end()
	s.mu.Lock()
	s.closed = true
	ids := make([]string, 0, len(s.containers))
	for id := range s.containers {
		ids = append(ids, id)
	}
	w := s.watch
	s.watch = nil
	s.mu.Unlock()
	var errs []error
	s.plug.Lock()
	s.disks = map[string]*disk{}
	s.plug.Unlock()
	for _, id := range ids {
		errs = append(errs, s.Release(ctx, id))
	}
	if w != nil {
		errs = append(errs, w.close())
	}
	return errors.Join(append(errs, Cleanup(ctx, s.opts.Dir))...)
}
