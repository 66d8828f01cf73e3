package volume

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// DefaultDirectDir is where CSI drivers announce direct-assigned volumes: the host does not mount them, the guest does.
const DefaultDirectDir = "/run/kata-containers/shared/direct-volumes"

const (
	directFile = "mountInfo.json"
	// maxDirect bounds a description in bytes.
	maxDirect = 64 << 10
)

// DirectInfo describes a direct-assigned volume.
type DirectInfo struct {
	// VolumeType is blk; vfiovol and spdkvol are known and refused.
	VolumeType string            `json:"volume-type"`
	Device     string            `json:"device"`
	FSType     string            `json:"fstype"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	Options    []string          `json:"options,omitempty"`
}

// Keys of Metadata.
const (
	metaGroup   = "fsGroup"
	metaChange  = "fsGroupChangePolicy"
	metaCreate  = "createFilesystem"
	metaEncrypt = "encryptionKey"
)

// ParseDirect reads a description and checks it.
func ParseDirect(text []byte) (*DirectInfo, error) {
	if len(text) > maxDirect {
		return nil, fmt.Errorf("description of %d bytes, at most %d are possible", len(text), maxDirect)
	}
	var info DirectInfo
	dec := json.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&info); err != nil {
		return nil, fmt.Errorf("description of a direct-assigned volume: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("description of a direct-assigned volume: something follows the JSON object")
	}
	return &info, info.check()
}

func (i *DirectInfo) check() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	switch i.VolumeType {
	case "blk":
	case "vfiovol", "spdkvol":
		bad("volume-type %q is not supported\nhint: use blk; the host's kernel then drives the disk", i.VolumeType)
	default:
		bad("volume-type %.40q: expected blk", i.VolumeType)
	}
	if !filepath.IsAbs(i.Device) || strings.ContainsAny(i.Device, "\x00\n,") {
		bad("device %.120q: expected the absolute path of a block device or an image file", i.Device)
	}
	if i.FSType == "" || len(i.FSType) > 32 || strings.Trim(i.FSType, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		bad("fstype %.40q: expected the name of a file system", i.FSType)
	}
	if len(i.Options) > 64 {
		bad("%d mount options, at most 64 are possible", len(i.Options))
	}
	for _, o := range i.Options {
		if o == "" || len(o) > 256 || strings.ContainsAny(o, "\x00\n") {
			bad("mount option %.80q", o)
		}
	}
	for k, v := range i.Metadata {
		switch k {
		case metaGroup:
			if _, err := parseGroup(v); err != nil {
				bad("%s %.40q: expected a group's number", k, v)
			}
		case metaChange:
			if v != "Always" && v != "OnRootMismatch" {
				bad("%s %.40q: expected Always or OnRootMismatch", k, v)
			}
		case metaCreate:
			if v != "true" && v != "false" {
				bad("%s %.40q: expected true or false", k, v)
			}
		case metaEncrypt:
			if v != "ephemeral" {
				bad("%s %.40q: expected ephemeral, the only key there is without telling the host", k, v)
			} else if i.Metadata[metaCreate] != "true" {
				bad("%s needs %s: a new key opens no old file system", k, metaCreate)
			}
		}
	}
	return errors.Join(errs...)
}

func parseGroup(v string) (uint32, error) {
	var n uint32
	if err := json.Unmarshal([]byte(v), &n); err != nil {
		return 0, err
	}
	return n, nil
}

// directPath is the directory of a volume's description.
func directPath(dir, volumePath string) (string, error) {
	volumePath = filepath.Clean(volumePath)
	name := base64.URLEncoding.EncodeToString([]byte(volumePath))
	if !filepath.IsAbs(volumePath) {
		return "", fmt.Errorf("volume path %.120q is not absolute", volumePath)
	}
	if len(name) > unix.NAME_MAX {
		return "", fmt.Errorf("volume path %.120q is too long: %d bytes, at most %d are possible", volumePath, len(volumePath), unix.NAME_MAX/4*3)
	}
	return filepath.Join(dir, name), nil
}

// FindDirect returns the description of a volume, nil when it is not a direct-assigned one.
func FindDirect(dir, volumePath string) (*DirectInfo, error) {
	p, err := directPath(dir, volumePath)
	if err != nil {
		return nil, nil // what cannot have a description has none
	}
	f, err := os.OpenFile(filepath.Join(p, directFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("direct-assigned volume %s: %w", volumePath, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDirect+1))
	if err != nil {
		return nil, fmt.Errorf("direct-assigned volume %s: %w", volumePath, err)
	}
	info, err := ParseDirect(text)
	if err != nil {
		return nil, fmt.Errorf("direct-assigned volume %s: %w", volumePath, err)
	}
	return info, nil
}

// AddDirect announces a volume: containers that mount volumePath get the device that info describes.
func AddDirect(dir, volumePath string, info []byte) error {
	if _, err := ParseDirect(info); err != nil {
		return err
	}
	p, err := directPath(dir, volumePath)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(p, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%s is announced already: %w\nhint: remove it first", volumePath, os.ErrExist)
		}
		return err
	}
	// A reader sees the whole description or none.
	tmp := filepath.Join(p, ".new")
	err = os.WriteFile(tmp, info, 0o600)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(p, directFile))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("announcing %s: %w", volumePath, err), os.RemoveAll(p))
	}
	return nil
}

// RemoveDirect takes the announcement of a volume back. Containers that have it keep it.
func RemoveDirect(dir, volumePath string) error {
	p, err := directPath(dir, volumePath)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(p); err != nil {
		return fmt.Errorf("%s is not announced: %w", volumePath, err)
	}
	return os.RemoveAll(p)
}

// DirectVolume is an announced volume.
type DirectVolume struct {
	Path string `json:"path"`
	// Info is nil when Problem says why the description cannot be used.
	Info    *DirectInfo `json:"info,omitempty"`
	Problem string      `json:"problem,omitempty"`
	// Bytes is the size of the device, 0 when it cannot be examined.
	Bytes int64 `json:"bytes,omitempty"`
}

// ListDirect lists the announced volumes.
func ListDirect(dir string) ([]DirectVolume, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []DirectVolume
	for _, e := range entries {
		p, err := base64.URLEncoding.DecodeString(e.Name())
		if err != nil || !e.IsDir() {
			continue // not an announcement
		}
		out = append(out, statDirect(dir, string(p)))
	}
	return out, nil
}

// StatsDirect describes one announced volume.
func StatsDirect(dir, volumePath string) (*DirectVolume, error) {
	v := statDirect(dir, filepath.Clean(volumePath))
	if v.Info == nil && v.Problem == "" {
		return nil, fmt.Errorf("%s is not announced: %w", volumePath, os.ErrNotExist)
	}
	return &v, nil
}

func statDirect(dir, volumePath string) DirectVolume {
	v := DirectVolume{Path: volumePath}
	var err error
	if v.Info, err = FindDirect(dir, volumePath); err != nil {
		v.Problem = err.Error()
		return v
	}
	if v.Info == nil {
		return v
	}
	if info, err := os.Stat(v.Info.Device); err == nil && (info.Mode().IsRegular() || info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice) {
		if f, err := os.Open(v.Info.Device); err == nil {
			v.Bytes, _ = f.Seek(0, io.SeekEnd)
			f.Close()
		}
	}
	return v
}

// direct attaches a direct-assigned volume.
func (b *build) direct(ctx context.Context, info *DirectInfo) (string, error) {
	src, err := openSource(info.Device, "")
	if err != nil {
		return "", err
	}
	defer src.file.Close()
	if !src.block() && !src.regular() {
		return "", fmt.Errorf("%s is neither a block device nor an image file", info.Device)
	}
	d, err := b.attach(ctx, src, attachOptions{keep: true, readOnly: slices.Contains(info.Options, "ro")})
	if errors.Is(err, errors.ErrUnsupported) {
		return "", fmt.Errorf("%w\nhint: this virtual machine cannot get disks while it runs; use a RuntimeClass whose VMM can", err)
	}
	if err != nil {
		return "", err
	}
	st := diskStorage(d)
	st.Fstype, st.Options = info.FSType, info.Options
	// One file system for all containers of the pod; which of them may write is decided by their mounts of it.
	if info.Metadata[metaCreate] == "true" {
		if info.Metadata[metaEncrypt] != "" {
			st.DriverOptions = append(st.DriverOptions, "encryption_key="+info.Metadata[metaEncrypt])
		}
		st.DriverOptions = append(st.DriverOptions, "create_filesystem")
	}
	if v, ok := info.Metadata[metaGroup]; ok {
		gid, err := parseGroup(v)
		if err != nil {
			return "", err
		}
		st.FsGroup = &agent.FSGroup{GroupId: gid}
		if info.Metadata[metaChange] == "OnRootMismatch" {
			st.FsGroup.GroupChangePolicy = agent.FSGroupChangePolicy_OnRootMismatch
		}
	}
	b.storage(st)
	return st.GetMountPoint(), nil
}
