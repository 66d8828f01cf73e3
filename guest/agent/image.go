package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// imageOption introduces the annotations of an image storage.
const imageOption = "image_guest_pull="

// maxImageRef bounds an image reference.
const maxImageRef = 1024

// imageStorage provides a container's root: the guest's own for a sandbox container, a pulled image for all others.
func (a *Agent) imageStorage(ctx context.Context, containerID string, s *agent.Storage) (func() error, error) {
	bundle := filepath.Join(a.cfg.Layout.Root, containerID)
	if want := filepath.Join(bundle, "rootfs"); containerID == "" || s.GetMountPoint() != want {
		return nil, invalid("an image of container %s belongs at %s, not %.120q", containerID, want, s.GetMountPoint())
	}
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		return nil, fmt.Errorf("making the container's directory: %w", err)
	}
	sandbox, err := isSandboxImage(s)
	if err != nil {
		return nil, err
	}
	if sandbox {
		return nil, a.pauseRootfs(s.GetMountPoint())
	}
	if ref := s.GetSource(); ref == "" || len(ref) > maxImageRef {
		return nil, invalid("image reference %.80q", ref)
	}
	if a.cfg.Images == nil {
		return nil, fmt.Errorf("pulling images: the guest runs without a data hub: %w", errUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.PullTimeout)
	defer cancel()
	digest, err := a.cfg.Images.PullImage(ctx, s.GetSource(), bundle)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", s.GetSource(), err)
	}
	a.log.Info("image ready", "container", containerID, "image", s.GetSource(), "digest", digest)
	return func() error { return a.cfg.Images.Release(bundle) }, nil
}

// isSandboxImage reports whether a storage is for the pod's sandbox container, by the annotation its runtime sets. The names are taken
// as they are written, as policies take them: a structure would accept them in any case. What cannot be read is an error, since a policy
// may have read it.
func isSandboxImage(s *agent.Storage) (bool, error) {
	sandbox := false
	for _, o := range s.GetDriverOptions() {
		text, ok := strings.CutPrefix(o, imageOption)
		if !ok {
			continue
		}
		var opt map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &opt); err != nil || opt == nil {
			return false, invalid("driver option %.120q", o)
		}
		raw, ok := opt["metadata"]
		if !ok {
			continue
		}
		var metadata map[string]string
		if json.Unmarshal(raw, &metadata) != nil {
			return false, invalid("metadata in the driver option %.120q", o)
		}
		for _, key := range []string{"io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"} {
			sandbox = sandbox || metadata[key] == "sandbox"
		}
	}
	return sandbox, nil
}

// pauseRootfs is a root with one program: the guest's own binary, read-only, which waits for its end.
func (a *Agent) pauseRootfs(rootfs string) error {
	for _, dir := range []string{"proc", "dev", "sys", "etc"} {
		if err := os.MkdirAll(filepath.Join(rootfs, dir), 0o755); err != nil {
			return fmt.Errorf("making the sandbox root: %w", err)
		}
	}
	target := filepath.Join(rootfs, "pause")
	if err := os.WriteFile(target, nil, 0o755); err != nil {
		return fmt.Errorf("making the sandbox root: %w", err)
	}
	if err := unix.Mount(a.cfg.Layout.Pause, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding the pause program: %w", err)
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("protecting the pause program: %w", err)
	}
	return nil
}
