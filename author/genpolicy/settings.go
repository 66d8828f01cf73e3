package genpolicy

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed settings.json
var defaultSettings []byte

// Settings say how the nodes run pods, and what the host may ask for. Members that only the rules read are kept as they are.
type Settings struct {
	PauseContainer template          `json:"pause_container"`
	OtherContainer template          `json:"other_container"`
	Volumes        map[string]volume `json:"volumes"`
	Devices        struct {
		VFIO struct {
			DevicePath   string `json:"device_path"`
			AnnoKeyRegex string `json:"anno_key_regex"`
			Nvidia       struct {
				AnnoValueRegex string   `json:"gpu_anno_value_regex"`
				DeviceType     string   `json:"gpu_gk_device_type"`
				ResourceKeys   []string `json:"pgpu_resource_keys"`
			} `json:"nvidia"`
		} `json:"vfio"`
	} `json:"devices"`
	MountDestinations []string       `json:"mount_destinations"`
	Sandbox           map[string]any `json:"sandbox"`
	Common            map[string]any `json:"common"`
	Kata              struct {
		OCIVersion       string `json:"oci_version"` // empty: whichever the node's containerd writes
		ConfigMapStorage bool   `json:"enable_configmap_secret_storages"`
	} `json:"kata_config"`
	Cluster  map[string]any `json:"cluster_config"`
	Requests map[string]any `json:"request_defaults"`
	// Fragments are those that the policy accepts, copied as they are.
	Fragments []Fragment `json:"fragments"`
	// DirectVolumes are those whose disk the guest gets. The first that fits a volume counts.
	DirectVolumes []DirectVolume `json:"direct_volumes"`

	cluster clusterConfig
	common  commonConfig
}

// clusterConfig are the members of cluster_config that the generator reads.
type clusterConfig struct {
	PauseImage   string       `json:"pause_container_image"`
	PauseConfig  *pauseConfig `json:"pause_container_config"`
	GuestPull    bool         `json:"guest_pull"`
	ImagesOnNode bool         `json:"images_on_node"`
	EmptyDir     string       `json:"emptydir_type"`
	// PerMount: a container that mounts an emptyDir twice has two storages for it. Kata does that, and is meant where nothing is said.
	PerMount *bool `json:"emptydir_storage_per_mount"`
}

type pauseConfig struct {
	User, WorkingDir string
	Entrypoint, Env  []string
}

type commonConfig struct {
	DefaultCaps    []string `json:"default_caps"`
	PrivilegedCaps []string `json:"privileged_caps"`
	LayerCheck     string   `json:"image_layer_verification"`
}

type template struct {
	Root        root              `json:"Root"`
	Mounts      []mount           `json:"Mounts"`
	Annotations map[string]string `json:"Annotations"`
	Process     struct {
		NoNewPrivileges bool
		Args, Env       []string
		Cwd             string
	} `json:"Process"`
	Linux struct {
		MaskedPaths, ReadonlyPaths []string
		Sysctl                     map[string]string
	} `json:"Linux"`
}

type volume struct {
	MountType     string   `json:"mount_type"`
	MountSource   string   `json:"mount_source"`
	MountPoint    string   `json:"mount_point"`
	Driver        string   `json:"driver"`
	DriverOptions []string `json:"driver_options"`
	Source        string   `json:"source"`
	FSType        string   `json:"fstype"`
	Options       []string `json:"options"`
	Shared        bool     `json:"shared"`
}

// Values of image_layer_verification and emptydir_type.
const (
	LayersNone   = "none"
	LayersVerity = "host-erofs-dm-verity"

	emptyDirSealed = "block-encrypted"
	emptyDirPlain  = "block-plain"
	emptyDirShared = "shared-fs"
	emptyDirGuest  = "guest"
)

const maxSettings = 4 << 20

// DefaultSettings are those of Cloister's own guest.
func DefaultSettings() (*Settings, error) { return parseSettings(defaultSettings, nil) }

// LoadSettings reads a settings file as upstream's generator has it, or a directory with genpolicy-settings.json (ours if
// there is none) and patches (RFC 6902) in genpolicy-settings.d/*.json, applied in the order of their names.
func LoadSettings(path string) (*Settings, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading settings: %w", err)
	}
	if !info.IsDir() {
		text, err := readBounded(path)
		if err != nil {
			return nil, fmt.Errorf("reading settings: %w", err)
		}
		s, err := parseSettings(text, nil)
		if err != nil {
			return nil, fmt.Errorf("reading settings: %s: %w", path, err)
		}
		return s, nil
	}
	base := filepath.Join(path, "genpolicy-settings.json")
	text, err := readBounded(base)
	if errors.Is(err, os.ErrNotExist) {
		text, err = defaultSettings, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading settings: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(path, "genpolicy-settings.d", "*.json"))
	if err != nil {
		return nil, fmt.Errorf("reading settings: %w", err)
	}
	slices.Sort(names)
	var patches []namedPatch
	for _, name := range names {
		p, err := readBounded(name)
		if err != nil {
			return nil, fmt.Errorf("reading settings: %w", err)
		}
		patches = append(patches, namedPatch{name, p})
	}
	s, err := parseSettings(text, patches)
	if err != nil {
		return nil, fmt.Errorf("reading settings of %s: %w", path, err)
	}
	return s, nil
}

type namedPatch struct {
	name string
	text []byte
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSettings+1))
	if err == nil && len(text) > maxSettings {
		err = fmt.Errorf("%s has more than %d bytes", name, maxSettings)
	}
	return text, err
}

// decodeJSON keeps numbers as they are written.
func decodeJSON(text []byte, v any) error {
	return decodeWhole(json.NewDecoder(bytes.NewReader(text)), v)
}

// decodeStrict refuses members that v does not have, too.
func decodeStrict(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	return decodeWhole(dec, v)
}

func decodeWhole(dec *json.Decoder, v any) error {
	dec.UseNumber()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more text follows")
	}
	return nil
}

func parseSettings(text []byte, patches []namedPatch) (*Settings, error) {
	var tree any
	if err := decodeJSON(text, &tree); err != nil {
		return nil, err
	}
	for _, p := range patches {
		var err error
		if tree, err = applyPatch(tree, p.text); err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	patched, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	s := &Settings{}
	if err := decodeStrict(patched, s); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		from map[string]any
		to   any
	}{{s.Cluster, &s.cluster}, {s.Common, &s.common}} {
		text, err := json.Marshal(part.from)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, part.to); err != nil {
			return nil, err
		}
	}
	return s, s.check()
}

func (s *Settings) check() error {
	var problems []error
	fail := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	for _, key := range []string{"cpath", "root_path", "sfprefix"} {
		if x, ok := s.Common[key].(string); !ok || x == "" {
			fail("common.%s is missing", key)
		}
	}
	if len(s.common.DefaultCaps) == 0 || len(s.common.PrivilegedCaps) == 0 {
		fail("common.default_caps or common.privileged_caps is missing")
	}
	switch s.common.LayerCheck {
	case "":
		s.common.LayerCheck = LayersNone
	case LayersNone, LayersVerity:
	default:
		fail("common.image_layer_verification is %q, expected %s or %s", s.common.LayerCheck, LayersNone, LayersVerity)
	}
	for _, name := range []string{"configMap", "image_volume", "emptyDir_memory"} {
		if _, ok := s.Volumes[name]; !ok {
			fail("volumes.%s is missing", name)
		}
	}
	if err := s.SetEmptyDir(s.cluster.EmptyDir); err != nil {
		problems = append(problems, fmt.Errorf("cluster_config.emptydir_type: %w", err))
	}
	for i := range s.DirectVolumes {
		for _, err := range s.DirectVolumes[i].check() {
			fail("direct_volumes[%d]: %w", i, err)
		}
	}
	if x, ok := s.Common["spath"].(string); (!ok || x == "") && len(s.DirectVolumes) > 0 {
		fail("common.spath is missing, where disks are mounted: direct_volumes needs it")
	}
	exec, _ := s.Requests["ExecProcessRequest"].(map[string]any)
	if old, ok := exec["commands"].([]any); ok && len(old) > 0 {
		fail("request_defaults.ExecProcessRequest.commands is no longer used; write allowed_commands, lists of words")
	}
	return errors.Join(problems...)
}

// SetEmptyDir chooses what an emptyDir is: block-encrypted, block-plain, shared-fs, or guest, a directory in its memory.
func (s *Settings) SetEmptyDir(kind string) error {
	need := map[string]string{emptyDirSealed: "emptyDir_encrypted", emptyDirPlain: "emptyDir_plain", emptyDirShared: "emptyDir", emptyDirGuest: "emptyDir"}
	name, ok := need[kind]
	if !ok {
		return fmt.Errorf("%q is none of block-encrypted, block-plain, shared-fs, guest", kind)
	}
	if _, ok := s.Volumes[name]; !ok {
		return fmt.Errorf("volumes.%s is missing", name)
	}
	s.cluster.EmptyDir = kind
	s.Cluster["emptydir_type"] = kind
	return nil
}

// SetLayers chooses where layers come from: LayersVerity, block devices of the host; LayersNone, pulled by the guest.
func (s *Settings) SetLayers(check string) {
	s.common.LayerCheck = check
	s.Common["image_layer_verification"] = check
}

// Allow switches requests with a boolean setting, such as ReadStreamRequest, on.
func (s *Settings) Allow(requests ...string) {
	for _, r := range requests {
		s.Requests[r] = true
	}
}

// AllowExec allows commands in every container.
func (s *Settings) AllowExec(commands ...[]string) {
	exec, _ := s.Requests["ExecProcessRequest"].(map[string]any)
	if exec == nil {
		exec = map[string]any{"regex": []any{}}
		s.Requests["ExecProcessRequest"] = exec
	}
	list, _ := exec["allowed_commands"].([]any)
	for _, c := range commands {
		list = append(list, c)
	}
	exec["allowed_commands"] = list
}

// HostLayers says whether layers come from the host.
func (s *Settings) HostLayers() bool { return s.common.LayerCheck == LayersVerity }

// base is the last element of a path, as part of a regular expression.
func trimSlash(p string) string {
	if p == "/" {
		return p
	}
	return strings.TrimRight(p, "/")
}
