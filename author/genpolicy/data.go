package genpolicy

// The types are policy_data in JSON; members in upstream's spelling.

type policyData struct {
	Containers []container    `json:"containers"`
	Common     map[string]any `json:"common"`
	Sandbox    map[string]any `json:"sandbox"`
	Requests   map[string]any `json:"request_defaults"`
	Devices    any            `json:"devices"`
	Cluster    map[string]any `json:"cluster_config"`
	Fragments  []Fragment     `json:"fragments,omitempty"`
	Cloister   ownData        `json:"cloister"`
}

// Fragment declares whose signed fragments add containers to the policy.
type Fragment struct {
	Issuer       string `json:"issuer"` // did:x509
	Feed         string `json:"feed"`
	MinimumSVN   uint64 `json:"minimum_svn"`
	Required     bool   `json:"required,omitempty"`      // no container is created before it is there
	AllowExpired bool   `json:"allow_expired,omitempty"` // its certificates may be past their time
}

type ownData struct {
	Version      int  `json:"version"`
	EnforceOrder bool `json:"enforce_order"`
	BindFiles    bool `json:"bind_files"`
}

type container struct {
	OCI          oci               `json:"OCI"`
	Storages     []storage         `json:"storages"`
	Devices      []device          `json:"devices"`
	SandboxPidns bool              `json:"sandbox_pidns"`
	ExecCommands [][]string        `json:"exec_commands"`
	AnnoPatterns map[string]string `json:"runtime_anno_patterns"`

	Name     string      `json:"name"`
	Kind     string      `json:"kind"`
	Image    *imageRef   `json:"image"`
	Signals  []int       `json:"signals"`
	Order    int         `json:"order"`
	MustRun  bool        `json:"must_run"`
	Restarts bool        `json:"restarts"`
	Files    []fileMount `json:"files"`

	RequiredEnv    []string    `json:"required_env"`
	RequiredMounts []string    `json:"required_mounts"`
	Directories    []directory `json:"directories,omitempty"`
	// ClusterValues has the regular expression of what can stand in the place of $(cluster:NAME) in Args and Env, by NAME.
	ClusterValues map[string]string `json:"cluster_values,omitempty"`
}

// Kinds of containers.
const (
	kindPause     = "pause"
	kindInit      = "init"
	kindSidecar   = "sidecar"
	kindContainer = "container"
)

type imageRef struct {
	Reference string   `json:"reference"`
	Digest    string   `json:"digest"`
	Digests   []string `json:"digests"`
	Names     []string `json:"names"`
	ByTag     bool     `json:"by_tag"`
}

// directory is one of a volume in the guest, which a sub-path mounts and the host has the guest make.
type directory struct {
	Destination string   `json:"destination"` // of the mount, which has its source
	Options     []string `json:"options"`
}

type fileMount struct {
	Destination string               `json:"destination"`
	Base        string               `json:"base"`
	Volume      string               `json:"volume"`
	Kind        string               `json:"kind"`
	Single      bool                 `json:"single"`
	Bound       bool                 `json:"bound"`
	Entries     map[string]fileEntry `json:"entries"`
	Free        *freeFiles           `json:"free,omitempty"`
}

// freeFiles says where a volume that is bound in part can have files of any content, besides its entries.
type freeFiles struct {
	Any   bool     `json:"any"` // anywhere but at, above and below the entries
	Paths []string `json:"paths"`
}

type fileEntry struct {
	SHA256 string `json:"sha256"`
	Size   int    `json:"size"`
}

type oci struct {
	Version     string            `json:"Version"`
	Process     process           `json:"Process"`
	Root        root              `json:"Root"`
	Mounts      []mount           `json:"Mounts,omitempty"`
	Annotations map[string]string `json:"Annotations,omitempty"`
	Linux       linux             `json:"Linux"`
}

type process struct {
	Terminal        bool         `json:"Terminal"`
	User            user         `json:"User"`
	Args            []string     `json:"Args,omitempty"`
	Env             []string     `json:"Env,omitempty"`
	Cwd             string       `json:"Cwd,omitempty"`
	Capabilities    capabilities `json:"Capabilities"`
	NoNewPrivileges bool         `json:"NoNewPrivileges"`
}

type user struct {
	UID            uint32   `json:"UID"`
	GID            uint32   `json:"GID"`
	AdditionalGids []uint32 `json:"AdditionalGids"`
	Username       string   `json:"Username"`
}

type capabilities struct {
	Ambient     []string `json:"Ambient"`
	Bounding    []string `json:"Bounding"`
	Effective   []string `json:"Effective"`
	Inheritable []string `json:"Inheritable"`
	Permitted   []string `json:"Permitted"`
}

type root struct {
	Path     string `json:"Path"`
	Readonly bool   `json:"Readonly"`
}

type mount struct {
	Destination string   `json:"destination"`
	Source      string   `json:"source"`
	Type        string   `json:"type_"`
	Options     []string `json:"options"`
	Written     string   `json:"written,omitempty"` // how the manifest writes the destination, if otherwise
	Volume      string   `json:"volume,omitempty"`  // its disk: that of the storages with this volume
}

type linux struct {
	Namespaces    []namespace       `json:"Namespaces"`
	MaskedPaths   []string          `json:"MaskedPaths"`
	ReadonlyPaths []string          `json:"ReadonlyPaths"`
	Devices       []linuxDevice     `json:"Devices"`
	Sysctl        map[string]string `json:"Sysctl,omitempty"`
}

type namespace struct {
	Type string `json:"Type"`
	Path string `json:"Path"`
}

type linuxDevice struct {
	Type string `json:"Type"`
	Path string `json:"Path"`
}

type storage struct {
	Driver        string   `json:"driver"`
	DriverOptions []string `json:"driver_options"`
	Source        string   `json:"source"`
	FSType        string   `json:"fstype"`
	Options       []string `json:"options"`
	MountPoint    string   `json:"mount_point"`
	FSGroup       *fsGroup `json:"fs_group"`
	Shared        bool     `json:"shared"`
	Volume        string   `json:"volume,omitempty"`
}

type fsGroup struct {
	GroupID uint32 `json:"group_id"`
	Policy  int    `json:"group_change_policy"`
}

type device struct {
	ID            string   `json:"id"`
	Type          string   `json:"type_"`
	VMPath        string   `json:"vm_path"`
	ContainerPath string   `json:"container_path"`
	Options       []string `json:"options"`
}
