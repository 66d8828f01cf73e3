package container

import (
	"errors"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/cloister/cloister/wire/agent"
)

// Placement is what the guest, not the host, decides about a container.
type Placement struct {
	ID string
	// Rootfs is the container's root directory.
	Rootfs string
	// Namespaces of the sandbox to join, by runtime-spec type; a type that is absent is made new.
	Join map[string]string
	// BindRoots are the directories below which bind mounts may find their sources.
	BindRoots []string
	// Devices that the guest has resolved, by path in the container; only these block devices are let in.
	Devices map[string]DeviceSpec
	// Reserved tells which character devices belong to the guest alone, such as its TPM; nil means none.
	Reserved func(major, minor int64) bool
}

// bounds on what a request may list; the runtime's own work grows with them.
const (
	maxMounts = 512
	maxEnv    = 16384
)

// Convert makes a runtime configuration of a specification received from the host. All faults are reported together,
// each wrapping ErrSpec.
func Convert(in *agent.Spec, at Placement) (*Spec, error) {
	if in == nil {
		return nil, refuse("there is no OCI specification")
	}
	if err := ValidID(at.ID); err != nil {
		return nil, err
	}
	c := converter{at: at}
	out := &Spec{
		Version:     Version,
		Root:        RootSpec{Path: at.Rootfs, Readonly: in.GetRoot().GetReadonly()},
		Hostname:    in.GetHostname(),
		Annotations: in.GetAnnotations(),
	}
	var err error
	out.Process, err = ConvertProcess(in.GetProcess())
	c.note(err)
	c.hooks(in.GetHooks())
	if in.GetSolaris() != nil || in.GetWindows() != nil {
		c.note(refuse("only Linux containers run here"))
	}
	out.Mounts = c.mounts(in.GetMounts())
	out.Linux = c.linux(in.GetLinux(), out)
	if err := errors.Join(c.errs...); err != nil {
		return nil, err
	}
	return out, nil
}

// converter gathers faults.
type converter struct {
	at   Placement
	errs []error
}

func (c *converter) note(err error) {
	if err != nil {
		c.errs = append(c.errs, err)
	}
}

func (c *converter) hooks(h *agent.Hooks) {
	for _, list := range [][]*agent.Hook{
		h.GetPrestart(), h.GetPoststart(), h.GetPoststop(), h.GetCreateRuntime(), h.GetCreateContainer(), h.GetStartContainer(),
	} {
		if len(list) > 0 {
			c.note(refuse("hooks are not supported (%s)", clip(list[0].GetPath())))
			return
		}
	}
}

// ConvertProcess makes a runtime process of one received from the host. AppArmor and SELinux labels name policies of
// the host's kernel and are dropped; the guest's kernel has none.
func ConvertProcess(p *agent.Process) (*ProcessSpec, error) {
	if p == nil {
		return nil, refuse("there is no process")
	}
	out := &ProcessSpec{
		Terminal:        p.GetTerminal(),
		User:            UserSpec{UID: p.GetUser().GetUID(), GID: p.GetUser().GetGID(), AdditionalGids: p.GetUser().GetAdditionalGids()},
		Args:            p.GetArgs(),
		Env:             slices.Clone(p.GetEnv()),
		Cwd:             p.GetCwd(),
		NoNewPrivileges: p.GetNoNewPrivileges(),
	}
	var errs []error
	if len(out.Args) == 0 || out.Args[0] == "" {
		errs = append(errs, refuse("the process has no program to run"))
	}
	if out.Cwd == "" {
		out.Cwd = "/"
	}
	if !path.IsAbs(out.Cwd) {
		errs = append(errs, refuse("working directory %q is not absolute", clip(out.Cwd)))
	}
	if len(out.Env) > maxEnv {
		errs = append(errs, refuse("%d environment variables, at most %d are accepted", len(out.Env), maxEnv))
	}
	for _, text := range slices.Concat(out.Args, out.Env) {
		if strings.ContainsRune(text, 0) {
			errs = append(errs, refuse("an argument or variable contains a zero byte"))
			break
		}
	}
	for _, kv := range out.Env {
		if i := strings.IndexByte(kv, '='); i <= 0 {
			errs = append(errs, refuse("an environment variable has no name or no value"))
			break
		}
	}
	if b := p.GetConsoleSize(); b != nil {
		out.ConsoleSize = &BoxSpec{Height: uint(b.GetHeight()), Width: uint(b.GetWidth())}
	}
	if caps := p.GetCapabilities(); caps != nil {
		out.Capabilities = &CapabilitiesSpec{
			Bounding: caps.GetBounding(), Effective: caps.GetEffective(), Inheritable: caps.GetInheritable(),
			Permitted: caps.GetPermitted(), Ambient: caps.GetAmbient(),
		}
	}
	for _, r := range p.GetRlimits() {
		out.Rlimits = append(out.Rlimits, RlimitSpec{Type: r.GetType(), Hard: r.GetHard(), Soft: r.GetSoft()})
	}
	switch adj := p.GetOOMScoreAdj(); {
	case adj < -1000 || adj > 1000:
		errs = append(errs, refuse("OOM score adjustment %d is not within -1000 and 1000", adj))
	case adj != 0:
		n := int(adj)
		out.OOMScoreAdj = &n
	}
	return out, errors.Join(errs...)
}

func (c *converter) mounts(in []*agent.Mount) []MountSpec {
	if len(in) > maxMounts {
		c.note(refuse("%d mounts, at most %d are accepted", len(in), maxMounts))
		return nil
	}
	out := make([]MountSpec, 0, len(in))
	for _, m := range in {
		spec, err := c.mount(m)
		c.note(err)
		out = append(out, spec)
	}
	// What is mounted at a directory hides what was mounted below it before, so the order is not the host's to choose.
	slices.SortStableFunc(out, func(a, b MountSpec) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return out
}

func (c *converter) mount(m *agent.Mount) (MountSpec, error) {
	dest, err := cleanAbs(m.GetDestination())
	if err != nil {
		return MountSpec{}, err
	}
	if dest == "/" {
		return MountSpec{}, refuse("a mount on / would replace the container's root")
	}
	spec := MountSpec{Destination: dest, Type: m.GetType(), Source: m.GetSource(), Options: mountOptions(m.GetOptions())}
	if slices.Contains(spec.Options, "bind") || slices.Contains(spec.Options, "rbind") {
		spec.Type = "bind"
	}
	switch {
	case spec.Bind():
		spec.Source, err = cleanAbs(spec.Source)
		if err != nil {
			return MountSpec{}, err
		}
		if !slices.ContainsFunc(c.at.BindRoots, func(root string) bool { return below(spec.Source, root) }) {
			return MountSpec{}, refuse("mount source %q of %s is not in a directory of the pod", clip(spec.Source), dest)
		}
		if !slices.Contains(spec.Options, "bind") && !slices.Contains(spec.Options, "rbind") {
			spec.Options = append(spec.Options, "rbind")
		}
	case kernelFS(spec.Type):
		spec.Source = spec.Type
	default:
		return MountSpec{}, refuse("mount type %q on %s is not supported", clip(spec.Type), dest)
	}
	if dest == "/proc" && spec.Type != "proc" {
		return MountSpec{}, refuse("only proc may be mounted on /proc, got %q", clip(spec.Type))
	}
	if below(dest, "/proc") && !procMountAllowed(dest) {
		return MountSpec{}, refuse("a mount on %s is not allowed", clip(dest))
	}
	return spec, nil
}

// mountOptions drops kata's markers, which are not options of any file system, and propagation to the outside.
func mountOptions(in []string) []string {
	out := make([]string, 0, len(in))
	for _, o := range in {
		switch {
		case strings.HasPrefix(o, "X-kata."), strings.HasPrefix(o, "io.katacontainers."):
		case o == "shared":
			out = append(out, "slave")
		case o == "rshared":
			out = append(out, "rslave")
		default:
			out = append(out, o)
		}
	}
	return out
}

func (c *converter) linux(in *agent.Linux, spec *Spec) *LinuxSpec {
	out := &LinuxSpec{
		CgroupsPath:   CgroupsPath(c.at.ID),
		MaskedPaths:   in.GetMaskedPaths(),
		ReadonlyPaths: in.GetReadonlyPaths(),
		UIDMappings:   idMappings(in.GetUIDMappings()),
		GIDMappings:   idMappings(in.GetGIDMappings()),
	}
	out.Namespaces = c.namespaces(in.GetNamespaces())
	has := func(t string) bool {
		return slices.ContainsFunc(out.Namespaces, func(n NamespaceSpec) bool { return n.Type == t })
	}
	if c.at.Join["uts"] != "" {
		spec.Hostname = "" // the sandbox has set it
	}
	if len(out.UIDMappings)+len(out.GIDMappings) > 0 && !has("user") {
		c.note(refuse("id mappings need a user namespace"))
	}
	for key, value := range in.GetSysctl() {
		if err := checkSysctl(key); err != nil {
			c.note(err)
			continue
		}
		dst := &out.Sysctl
		if strings.HasPrefix(key, "net.") {
			dst = &spec.NetSysctl
		}
		if *dst == nil {
			*dst = map[string]string{}
		}
		(*dst)[key] = value
	}
	switch p := in.GetRootfsPropagation(); p {
	case "", "private", "rprivate", "slave", "rslave":
		out.RootfsPropagation = p
	default:
		c.note(refuse("root propagation %q is not allowed", clip(p)))
	}
	out.Devices = c.devices(in.GetDevices())
	resources, err := ConvertResources(in.GetResources())
	c.note(err)
	if resources == nil {
		resources = &ResourcesSpec{}
	}
	resources.Devices = deviceRules(out.Devices)
	out.Resources = resources
	out.Seccomp = seccomp(in.GetSeccomp())
	return out
}

// CgroupsPath is where a container's control group lives. The guest chooses it: a name from the host has no meaning here.
func CgroupsPath(id string) string { return "/pod/" + id }

func idMappings(in []*agent.LinuxIDMapping) []IDMappingSpec {
	var out []IDMappingSpec
	for _, m := range in {
		out = append(out, IDMappingSpec{ContainerID: m.GetContainerID(), HostID: m.GetHostID(), Size: m.GetSize()})
	}
	return out
}

// namespaces lists the namespaces of the container. All kinds but the user's always exist, the network is the guest's,
// and paths come from the sandbox only.
func (c *converter) namespaces(in []*agent.LinuxNamespace) []NamespaceSpec {
	types := []string{"mount", "pid", "ipc", "uts", "cgroup"}
	listed := map[string]bool{}
	for _, ns := range in {
		t := ns.GetType()
		if listed[t] {
			c.note(refuse("namespace %q is listed twice", clip(t)))
			continue
		}
		listed[t] = true
		switch t {
		case "mount", "pid", "ipc", "uts", "cgroup", "network":
			// Decided here; a path would name a namespace of the host.
			continue
		case "user":
		default:
			c.note(refuse("namespace type %q is not supported", clip(t)))
			continue
		}
		if ns.GetPath() != "" {
			c.note(refuse("namespace %s names the path %q, which is not the guest's", t, clip(ns.GetPath())))
			continue
		}
		types = append(types, t)
	}
	out := make([]NamespaceSpec, 0, len(types))
	for _, t := range types {
		out = append(out, NamespaceSpec{Type: t, Path: c.at.Join[t]})
	}
	return out
}

func (c *converter) devices(in []*agent.LinuxDevice) []DeviceSpec {
	var out []DeviceSpec
	for _, d := range in {
		p, err := cleanAbs(d.GetPath())
		if err == nil && !below(p, "/dev") {
			err = refuse("device %q is not below /dev", clip(p))
		}
		if err != nil {
			c.note(err)
			continue
		}
		mode, uid, gid := d.GetFileMode()&0o7777, d.GetUID(), d.GetGID()
		spec := DeviceSpec{Path: p, Type: d.GetType(), Major: d.GetMajor(), Minor: d.GetMinor(), UID: &uid, GID: &gid}
		if mode != 0 {
			spec.FileMode = &mode
		}
		if resolved, ok := c.at.Devices[p]; ok {
			spec.Type, spec.Major, spec.Minor = resolved.Type, resolved.Major, resolved.Minor
		} else if err := c.checkDevice(spec); err != nil {
			c.note(err)
			continue
		}
		out = append(out, spec)
	}
	for p := range c.at.Devices {
		if !slices.ContainsFunc(out, func(d DeviceSpec) bool { return d.Path == p }) {
			c.note(refuse("device %s is not in the OCI specification", clip(p)))
		}
	}
	return out
}

func (c *converter) checkDevice(d DeviceSpec) error {
	switch d.Type {
	case "c", "u":
		if forbiddenChar(d.Major, d.Minor, c.at.Reserved) {
			return refuse("device %s (%d:%d) would open the guest itself", clip(d.Path), d.Major, d.Minor)
		}
	case "b":
		return refuse("block device %s (%d:%d) was not given to this container", clip(d.Path), d.Major, d.Minor)
	case "p":
	default:
		return refuse("device %s has the unknown type %q", clip(d.Path), clip(d.Type))
	}
	return nil
}

// deviceRules allows what the container was given, node by node. Making other nodes stays allowed, as everywhere;
// opening them does not. The host's own rules are not used: on this side of the boundary they mean other devices.
func deviceRules(devices []DeviceSpec) []DeviceRuleSpec {
	rules := []DeviceRuleSpec{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range devices {
		t := d.Type
		if t == "u" {
			t = "c"
		}
		if t != "c" && t != "b" {
			continue
		}
		major, minor := d.Major, d.Minor
		rules = append(rules, DeviceRuleSpec{Allow: true, Type: t, Major: &major, Minor: &minor, Access: "rwm"})
	}
	return rules
}

// ConvertResources makes runtime limits of those received from the host; nil stays nil. Device rules are not taken over.
func ConvertResources(r *agent.LinuxResources) (*ResourcesSpec, error) {
	if r == nil {
		return nil, nil
	}
	out := &ResourcesSpec{}
	if m := r.GetMemory(); m != nil {
		out.Memory = &MemorySpec{Limit: nonZero(m.GetLimit()), Reservation: nonZero(m.GetReservation()), Swap: nonZero(m.GetSwap())}
	}
	if c := r.GetCPU(); c != nil {
		out.CPU = &CPUSpec{
			Shares: nonZero(c.GetShares()), Quota: nonZero(c.GetQuota()), Period: nonZero(c.GetPeriod()), Cpus: c.GetCpus(), Mems: c.GetMems(),
		}
	}
	if p := r.GetPids(); p.GetLimit() != 0 {
		out.Pids = &PidsSpec{Limit: p.GetLimit()}
	}
	if w := r.GetBlockIO().GetWeight(); w != 0 {
		if w > math.MaxUint16 {
			return nil, refuse("block IO weight %d is too large", w)
		}
		weight := uint16(w)
		out.BlockIO = &BlockIOSpec{Weight: &weight}
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, HugepageSpec{Pagesize: h.GetPagesize(), Limit: h.GetLimit()})
	}
	return out, nil
}

// nonZero makes zero, the wire's way to say unset, absent.
func nonZero[T int64 | uint64](v T) *T {
	if v == 0 {
		return nil
	}
	return &v
}

func seccomp(s *agent.LinuxSeccomp) *SeccompSpec {
	if s == nil {
		return nil
	}
	out := &SeccompSpec{DefaultAction: s.GetDefaultAction(), Architectures: s.GetArchitectures(), Flags: s.GetFlags()}
	for _, sc := range s.GetSyscalls() {
		rule := SyscallSpec{Names: sc.GetNames(), Action: sc.GetAction()}
		if e, ok := sc.GetErrnoRet().(*agent.LinuxSyscall_Errnoret); ok {
			n := uint(e.Errnoret)
			rule.ErrnoRet = &n
		}
		for _, a := range sc.GetArgs() {
			rule.Args = append(rule.Args, SyscallArgSpec{Index: uint(a.GetIndex()), Value: a.GetValue(), ValueTwo: a.GetValueTwo(), Op: a.GetOp()})
		}
		out.Syscalls = append(out.Syscalls, rule)
	}
	return out
}
