package image

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bundle is a mounted root file system.
type bundle struct {
	rootfs  string
	scratch string // holds upperdir and workdir
	config  string
	layers  []string // store ids
}

func (c *Client) hasBundle(path string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bundles[path] != nil
}

// makeBundle mounts the layers (lowest first) at <path>/rootfs and writes <path>/config.json.
func (c *Client) makeBundle(path string, img *resolved, ids, dirs []string) (err error) {
	b := &bundle{rootfs: filepath.Join(path, "rootfs"), config: filepath.Join(path, "config.json"), layers: ids}
	if err := os.MkdirAll(b.rootfs, 0o755); err != nil {
		return fmt.Errorf("making the bundle: %w", err)
	}
	name := make([]byte, 16)
	rand.Read(name)
	b.scratch = filepath.Join(c.cfg.WorkDir, "overlay", hex.EncodeToString(name))
	upper, work := filepath.Join(b.scratch, "upperdir"), filepath.Join(b.scratch, "workdir")
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(b.scratch))
		}
	}()
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making the bundle: %w", err)
		}
	}
	// The root directory itself looks as the top layer's does.
	if st, err := os.Stat(dirs[len(dirs)-1]); err == nil {
		if err := os.Chmod(upper, st.Mode().Perm()|st.Mode()&(fs.ModeSticky|fs.ModeSetgid)); err != nil {
			return fmt.Errorf("making the bundle: %w", err)
		}
	}
	spec, err := runtimeSpec(img.config)
	if err != nil {
		return err
	}
	if err := writeNew(b.config, spec); err != nil {
		return fmt.Errorf("writing the bundle's config.json: %w", err)
	}
	lower := slices.Clone(dirs)
	slices.Reverse(lower)
	if err := c.mounter.Mount(lower, upper, work, b.rootfs); err != nil {
		return errors.Join(fmt.Errorf("mounting the root file system: %w", err), os.Remove(b.config))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bundles[path] = b
	return nil
}

// Release unmounts the root file system that PullImage made at bundlePath and removes what the container wrote
// to it. A bundle that is not there is not an error.
func (c *Client) Release(bundlePath string) error {
	bundlePath = filepath.Clean(bundlePath)
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.bundles[bundlePath]
	if b == nil {
		return nil
	}
	if err := c.mounter.Unmount(b.rootfs); err != nil {
		return fmt.Errorf("releasing %s: %w", bundlePath, err)
	}
	delete(c.bundles, bundlePath)
	c.store.release(b.layers)
	var errs []error
	for _, remove := range []func() error{
		func() error { return os.RemoveAll(b.scratch) },
		func() error { return os.Remove(b.config) },
		func() error { return os.Remove(b.rootfs) },
	} {
		if err := remove(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("releasing %s: %w", bundlePath, err)
	}
	return nil
}

// Close releases every bundle and removes the layers.
func (c *Client) Close() error {
	c.mu.Lock()
	paths := slices.Collect(maps.Keys(c.bundles))
	c.mu.Unlock()
	var errs []error
	for _, p := range paths {
		errs = append(errs, c.Release(p))
	}
	return errors.Join(append(errs, c.store.prune())...)
}

func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// runtimeSpec is the part of an OCI runtime specification that an image decides. USER is left to the caller, who has
// the container's files.
func runtimeSpec(c *config) ([]byte, error) {
	type mount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options"`
	}
	type process struct {
		User struct {
			UID int `json:"uid"`
			GID int `json:"gid"`
		} `json:"user"`
		Args []string `json:"args"`
		Env  []string `json:"env"`
		Cwd  string   `json:"cwd"`
	}
	type root struct {
		Path string `json:"path"`
	}
	spec := struct {
		Version     string            `json:"ociVersion"`
		Process     process           `json:"process"`
		Root        root              `json:"root"`
		Hostname    string            `json:"hostname"`
		Mounts      []mount           `json:"mounts,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}{Version: "1.2.0", Root: root{Path: "rootfs"}, Hostname: "image-rs", Annotations: map[string]string{}}
	spec.Process.Args = slices.Concat(c.Config.Entrypoint, c.Config.Cmd)
	spec.Process.Env = c.Config.Env
	spec.Process.Cwd = c.Config.WorkingDir
	if spec.Process.Cwd == "" {
		spec.Process.Cwd = "/"
	}
	for key, value := range map[string]string{
		"org.opencontainers.image.os":           c.OS,
		"org.opencontainers.image.architecture": c.Architecture,
		"org.opencontainers.image.variant":      c.Variant,
		"org.opencontainers.image.author":       c.Author,
		"org.opencontainers.image.created":      c.Created,
		"org.opencontainers.image.stopSignal":   c.Config.StopSignal,
		"org.opencontainers.image.exposedPorts": strings.Join(slices.Sorted(maps.Keys(c.Config.ExposedPorts)), ","),
	} {
		if value != "" {
			spec.Annotations[key] = value
		}
	}
	maps.Copy(spec.Annotations, c.Config.Labels)
	for _, dest := range slices.Sorted(maps.Keys(c.Config.Volumes)) {
		spec.Mounts = append(spec.Mounts, mount{Destination: dest, Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", "rw"}})
	}
	data, err := json.Marshal(spec)
	return data, wrap("making the bundle's config.json", err)
}
