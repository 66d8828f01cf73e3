// Package blockmount is the one place that knows how a snapshotter tells a runtime where the block layers of a container's root
// are: it writes the mounts and reads them. There are two forms. In the form "overlay" the layers are mounted on the host and
// the list is an ordinary overlay mount, so that any containerd and any runtime can use it; the layer's file lies beside each
// lower directory. The form "erofs" is that of containerd's own EROFS snapshotter, whose layers nobody has mounted yet. A root with
// a sealed layer has types of mounts of its own there, which nothing on the host can mount.
package blockmount

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloister/cloister/layer/sealed"
)

// Names of files in a layer's directory.
const (
	LayerFile   = "layer.erofs"           // data, dm-verity superblock, tree
	SidecarFile = LayerFile + ".dmverity" // what Layer.Root and Layer.HashOffset are read from
	MountPoint  = "mnt"                   // where the host mounts the layer's file, in the form "overlay"
)

// Types of mounts in the form "erofs".
const (
	typeLayer   = "erofs"
	typeOverlay = "format/mkdir/overlay" // for containerd's mount manager
	// Those of a root with a sealed layer. No kernel and no mount manager knows them, so that whoever is not our shim fails: an "erofs"
	// would be mounted on the host, and what is said to be ciphertext need not be.
	typeSealed        = "cloister-sealed"
	typeSealedOverlay = "cloister-overlay"
)

const (
	sidecarOption = "X-containerd.dmverity="
	maxSidecar    = 64 << 10
	maxLayers     = 512 // more than overlayfs can stack
)

// Mount is one entry of a root's mount list, as containerd's API has it.
type Mount struct {
	Type, Source string
	Options      []string
}

// Layer is one layer of a container's root. Root and HashOffset are what the host says of it: whoever does not trust the host
// compares them with a policy.
type Layer struct {
	File       string // absolute path of the file with data, superblock and tree
	Root       string // dm-verity root hash, 64 lower-case hex characters
	HashOffset int64  // bytes of data; the superblock is there
	KeyID      string // of a sealed layer: where the broker has its key; "" for others
}

// sidecar is the file beside a layer, the format of containerd's EROFS differ.
type sidecar struct {
	Root       string `json:"roothash"`
	HashOffset int64  `json:"hashoffset"`
	KeyID      string `json:"keyid,omitempty"`
}

// Sidecar is the content of the file beside a layer.
func Sidecar(root string, hashOffset int64) ([]byte, error) {
	return Layer{Root: root, HashOffset: hashOffset}.Sidecar()
}

// Sidecar is the content of the file beside this layer.
func (l Layer) Sidecar() ([]byte, error) {
	s := sidecar{Root: l.Root, HashOffset: l.HashOffset, KeyID: l.KeyID}
	if err := s.check(); err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

func (s sidecar) check() error {
	if raw, err := hex.DecodeString(s.Root); err != nil || len(raw) != 32 || strings.ToLower(s.Root) != s.Root {
		return fmt.Errorf("the root hash is %.80q, want 64 lower-case hex characters", s.Root)
	}
	if s.HashOffset <= 0 || s.HashOffset%512 != 0 {
		return fmt.Errorf("the hash offset is %d, want a positive multiple of 512", s.HashOffset)
	}
	if s.KeyID != "" {
		return sealed.CheckKeyID(s.KeyID)
	}
	return nil
}

// Read reads the sidecar of a layer's file and looks whether the file can be what it says.
func Read(file string) (Layer, error) {
	info, err := os.Lstat(file)
	if err != nil {
		return Layer{}, fmt.Errorf("reading a block layer: %w", err)
	}
	if !info.Mode().IsRegular() {
		return Layer{}, fmt.Errorf("reading a block layer: %s is not a regular file", file)
	}
	name := filepath.Join(filepath.Dir(file), SidecarFile)
	f, err := os.Open(name)
	if err != nil {
		return Layer{}, fmt.Errorf("reading a block layer's root hash: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxSidecar+1))
	if err != nil {
		return Layer{}, fmt.Errorf("reading a block layer's root hash: %w", err)
	}
	if len(raw) > maxSidecar {
		return Layer{}, fmt.Errorf("reading a block layer's root hash: %s has more than %d bytes", name, maxSidecar)
	}
	var s sidecar
	if err := json.Unmarshal(raw, &s); err != nil {
		return Layer{}, fmt.Errorf("reading a block layer's root hash: %s: %w", name, err)
	}
	if err := s.check(); err != nil {
		return Layer{}, fmt.Errorf("reading a block layer's root hash: %s: %w", name, err)
	}
	if s.HashOffset >= info.Size() {
		return Layer{}, fmt.Errorf("reading a block layer: %s has %d bytes, its hashes are said to be at %d", file, info.Size(), s.HashOffset)
	}
	return Layer{File: file, Root: s.Root, HashOffset: s.HashOffset, KeyID: s.KeyID}, nil
}

// Layers reads a mount list. It returns the layers, topmost first, and the host's directory for what the container writes, which
// is empty for a read-only root. Without block layers in the list it returns none and no error: that is another snapshotter's
// root. A list in which only some lower directories are block layers is an error.
func Layers(mounts []Mount) (layers []Layer, upper string, err error) {
	files, upper, err := files(mounts)
	if err != nil || len(files) == 0 {
		return nil, "", err
	}
	if len(files) > maxLayers {
		return nil, "", fmt.Errorf("a root of %d block layers, want at most %d", len(files), maxLayers)
	}
	for _, file := range files {
		layer, err := Read(file)
		if err != nil {
			return nil, "", err
		}
		layers = append(layers, layer)
	}
	return layers, upper, nil
}

// files are the paths of the layers' files.
func files(mounts []Mount) (found []string, upper string, err error) {
	switch {
	case len(mounts) == 0:
		return nil, "", nil
	case isLayer(mounts[0]):
		return erofsFiles(mounts)
	case len(mounts) > 1:
		return nil, "", nil
	case mounts[0].Type == "bind":
		file, err := beside(mounts[0].Source)
		if err != nil || file == "" {
			return nil, "", err
		}
		return []string{file}, "", nil
	case mounts[0].Type != "overlay":
		return nil, "", nil
	}
	var lowers []string
	for _, option := range mounts[0].Options {
		switch name, value, _ := strings.Cut(option, "="); name {
		case "lowerdir":
			lowers = strings.Split(value, ":")
		case "upperdir":
			upper = value
		}
	}
	for _, lower := range lowers {
		file, err := beside(lower)
		if err != nil {
			return nil, "", err
		}
		if file != "" {
			found = append(found, file)
		}
	}
	if len(found) == 0 {
		return nil, "", nil
	}
	if len(found) != len(lowers) {
		return nil, "", fmt.Errorf("%d of %d lower directories are block layers, want all or none: %s", len(found), len(lowers), strings.Join(lowers, ":"))
	}
	return found, upper, nil
}

// beside is the layer's file beside its mount point, "" when the directory is not such a one.
func beside(dir string) (string, error) {
	if !filepath.IsAbs(dir) || filepath.Base(dir) != MountPoint {
		return "", nil
	}
	file := filepath.Join(filepath.Dir(dir), LayerFile)
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("looking for the block layer of %s: %w", dir, err)
	}
	return file, nil
}

// isLayer says whether a mount of the form "erofs" is a layer.
func isLayer(m Mount) bool { return m.Type == typeLayer || m.Type == typeSealed }

func erofsFiles(mounts []Mount) (found []string, upper string, err error) {
	rest := mounts
	for ; len(rest) > 0 && isLayer(rest[0]); rest = rest[1:] {
		file := rest[0].Source
		if !filepath.IsAbs(file) || filepath.Base(file) != LayerFile {
			return nil, "", nil
		}
		for _, option := range rest[0].Options {
			if strings.HasPrefix(option, "device=") {
				return nil, "", fmt.Errorf("%s is an index over other layers, which are not supported here", file)
			}
		}
		found = append(found, file)
	}
	switch {
	case len(rest) == 0 && len(found) == 1:
		return found, "", nil
	case len(rest) != 1 || !strings.HasSuffix(rest[0].Type, "overlay"):
		return nil, "", fmt.Errorf("after %d EROFS layers there are %d other mounts, want one overlay", len(found), len(rest))
	}
	for _, option := range rest[0].Options {
		if value, is := strings.CutPrefix(option, "upperdir="); is {
			upper = value
		}
	}
	return found, upper, nil
}
