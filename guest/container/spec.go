package container

// The types below are the part of the OCI runtime specification that the guest uses, in its JSON form.

// Version is the runtime specification the configuration follows.
const Version = "1.1.0"

// Spec is a runtime configuration, config.json.
type Spec struct {
	Version     string            `json:"ociVersion"`
	Process     *ProcessSpec      `json:"process"`
	Root        RootSpec          `json:"root"`
	Hostname    string            `json:"hostname,omitempty"`
	Mounts      []MountSpec       `json:"mounts"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Linux       *LinuxSpec        `json:"linux"`

	// NetSysctl are settings of the pod's network, which is the guest's own, so the guest applies them itself.
	NetSysctl map[string]string `json:"-"`
}

// RootSpec is the root file system.
type RootSpec struct {
	Path     string `json:"path"`
	Readonly bool   `json:"readonly,omitempty"`
}

// ProcessSpec is a process to start, also the body of an exec.
type ProcessSpec struct {
	Terminal        bool              `json:"terminal,omitempty"`
	ConsoleSize     *BoxSpec          `json:"consoleSize,omitempty"`
	User            UserSpec          `json:"user"`
	Args            []string          `json:"args"`
	Env             []string          `json:"env,omitempty"`
	Cwd             string            `json:"cwd"`
	Capabilities    *CapabilitiesSpec `json:"capabilities,omitempty"`
	Rlimits         []RlimitSpec      `json:"rlimits,omitempty"`
	NoNewPrivileges bool              `json:"noNewPrivileges,omitempty"`
	OOMScoreAdj     *int              `json:"oomScoreAdj,omitempty"`
}

// BoxSpec is a terminal size.
type BoxSpec struct {
	Height uint `json:"height"`
	Width  uint `json:"width"`
}

// UserSpec is a process's identity.
type UserSpec struct {
	UID            uint32   `json:"uid"`
	GID            uint32   `json:"gid"`
	AdditionalGids []uint32 `json:"additionalGids,omitempty"`
}

// CapabilitiesSpec lists capability names by set.
type CapabilitiesSpec struct {
	Bounding    []string `json:"bounding,omitempty"`
	Effective   []string `json:"effective,omitempty"`
	Inheritable []string `json:"inheritable,omitempty"`
	Permitted   []string `json:"permitted,omitempty"`
	Ambient     []string `json:"ambient,omitempty"`
}

// RlimitSpec is one resource limit.
type RlimitSpec struct {
	Type string `json:"type"`
	Hard uint64 `json:"hard"`
	Soft uint64 `json:"soft"`
}

// MountSpec is one mount in the container.
type MountSpec struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type,omitempty"`
	Source      string   `json:"source,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// Bind reports whether the mount shows an existing directory or file.
func (m MountSpec) Bind() bool { return m.Type == "bind" }

// LinuxSpec is the Linux part of a configuration.
type LinuxSpec struct {
	UIDMappings       []IDMappingSpec   `json:"uidMappings,omitempty"`
	GIDMappings       []IDMappingSpec   `json:"gidMappings,omitempty"`
	Sysctl            map[string]string `json:"sysctl,omitempty"`
	Resources         *ResourcesSpec    `json:"resources,omitempty"`
	CgroupsPath       string            `json:"cgroupsPath"`
	Namespaces        []NamespaceSpec   `json:"namespaces"`
	Devices           []DeviceSpec      `json:"devices,omitempty"`
	Seccomp           *SeccompSpec      `json:"seccomp,omitempty"`
	RootfsPropagation string            `json:"rootfsPropagation,omitempty"`
	MaskedPaths       []string          `json:"maskedPaths,omitempty"`
	ReadonlyPaths     []string          `json:"readonlyPaths,omitempty"`
}

// IDMappingSpec maps a range of ids of a user namespace.
type IDMappingSpec struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Size        uint32 `json:"size"`
}

// NamespaceSpec is a namespace to make or, with a path, to join.
type NamespaceSpec struct {
	Type string `json:"type"`
	Path string `json:"path,omitempty"`
}

// DeviceSpec is a device node.
type DeviceSpec struct {
	Path     string  `json:"path"`
	Type     string  `json:"type"`
	Major    int64   `json:"major"`
	Minor    int64   `json:"minor"`
	FileMode *uint32 `json:"fileMode,omitempty"`
	UID      *uint32 `json:"uid,omitempty"`
	GID      *uint32 `json:"gid,omitempty"`
}

// ResourcesSpec limits a container; it is also the body of an update.
type ResourcesSpec struct {
	Devices        []DeviceRuleSpec `json:"devices,omitempty"`
	Memory         *MemorySpec      `json:"memory,omitempty"`
	CPU            *CPUSpec         `json:"cpu,omitempty"`
	Pids           *PidsSpec        `json:"pids,omitempty"`
	BlockIO        *BlockIOSpec     `json:"blockIO,omitempty"`
	HugepageLimits []HugepageSpec   `json:"hugepageLimits,omitempty"`
}

// DeviceRuleSpec is a rule of the device cgroup.
type DeviceRuleSpec struct {
	Allow  bool   `json:"allow"`
	Type   string `json:"type,omitempty"`
	Major  *int64 `json:"major,omitempty"`
	Minor  *int64 `json:"minor,omitempty"`
	Access string `json:"access,omitempty"`
}

// MemorySpec limits memory, in bytes.
type MemorySpec struct {
	Limit       *int64 `json:"limit,omitempty"`
	Reservation *int64 `json:"reservation,omitempty"`
	Swap        *int64 `json:"swap,omitempty"`
}

// CPUSpec limits processor time.
type CPUSpec struct {
	Shares *uint64 `json:"shares,omitempty"`
	Quota  *int64  `json:"quota,omitempty"`
	Period *uint64 `json:"period,omitempty"`
	Cpus   string  `json:"cpus,omitempty"`
	Mems   string  `json:"mems,omitempty"`
}

// PidsSpec limits the number of processes.
type PidsSpec struct {
	Limit int64 `json:"limit"`
}

// BlockIOSpec weights block devices.
type BlockIOSpec struct {
	Weight *uint16 `json:"weight,omitempty"`
}

// HugepageSpec limits huge pages of one size.
type HugepageSpec struct {
	Pagesize string `json:"pageSize"`
	Limit    uint64 `json:"limit"`
}

// SeccompSpec is a system call filter.
type SeccompSpec struct {
	DefaultAction string        `json:"defaultAction"`
	Architectures []string      `json:"architectures,omitempty"`
	Flags         []string      `json:"flags,omitempty"`
	Syscalls      []SyscallSpec `json:"syscalls,omitempty"`
}

// SyscallSpec is one rule of a filter.
type SyscallSpec struct {
	Names    []string         `json:"names"`
	Action   string           `json:"action"`
	ErrnoRet *uint            `json:"errnoRet,omitempty"`
	Args     []SyscallArgSpec `json:"args,omitempty"`
}

// SyscallArgSpec compares one argument.
type SyscallArgSpec struct {
	Index    uint   `json:"index"`
	Value    uint64 `json:"value"`
	ValueTwo uint64 `json:"valueTwo,omitempty"`
	Op       string `json:"op"`
}
