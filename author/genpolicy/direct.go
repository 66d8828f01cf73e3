package genpolicy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
)

// DirectVolume says which volumes of pods are direct-assigned: the host does not mount them but gives the guest their disk. What their
// driver announces of them has the names of its mountInfo.json.
type DirectVolume struct {
	// One of the three says which volumes are meant. Claim is the name of a claim or of a volumeClaimTemplate and goes before the others;
	// Driver is that of CSI volumes in the pod itself.
	Claim        string `json:"claim,omitempty"`
	StorageClass string `json:"storage_class,omitempty"`
	Driver       string `json:"driver,omitempty"`

	FSType   string            `json:"fstype"`
	Options  []string          `json:"options,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Keys and values of DirectVolume.Metadata.
const (
	metaGroup     = "fsGroup"
	metaChange    = "fsGroupChangePolicy"
	metaCreate    = "createFilesystem"
	metaEncrypt   = "encryptionKey"
	groupOfPod    = "pod" // fsGroup and fsGroupChangePolicy as the pod has them, which a driver hears from the kubelet
	onlyMismatch  = "OnRootMismatch"
	ephemeralKey  = "ephemeral"
	maxDirectText = 256
)

// AddDirectVolume adds one from its JSON, which goes before those of the settings.
func (s *Settings) AddDirectVolume(text string) error {
	var d DirectVolume
	if err := decodeStrict([]byte(text), &d); err != nil {
		return err
	}
	if err := errors.Join(d.check()...); err != nil {
		return err
	}
	s.DirectVolumes = append([]DirectVolume{d}, s.DirectVolumes...)
	return nil
}

func (d *DirectVolume) check() (problems []error) {
	fail := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if n := len(slices.DeleteFunc([]string{d.Claim, d.StorageClass, d.Driver}, func(x string) bool { return x == "" })); n != 1 {
		fail("%d of claim, storage_class and driver are given, want one", n)
	}
	if d.FSType == "" || len(d.FSType) > 32 || strings.Trim(d.FSType, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		fail("fstype %.40q: want the name of a file system, such as ext4", d.FSType)
	}
	for _, o := range d.Options {
		if o == "" || len(o) > maxDirectText || strings.ContainsAny(o, "\x00\n") {
			fail("mount option %.80q", o)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(d.Metadata)) {
		v := d.Metadata[k]
		good, want := true, ""
		switch k {
		case metaGroup:
			_, err := strconv.ParseUint(v, 10, 32)
			good, want = v == groupOfPod || err == nil, "the number of a group, or pod"
		case metaChange:
			good, want = v == "Always" || v == onlyMismatch || v == groupOfPod, "Always, OnRootMismatch or pod"
		case metaCreate:
			good, want = v == "true" || v == "false", "true or false"
		case metaEncrypt:
			good, want = v == ephemeralKey, "ephemeral, a key that is made in the guest"
		default:
			fail("metadata.%.40s is not known, want fsGroup, fsGroupChangePolicy, createFilesystem or encryptionKey", k)
		}
		if !good {
			fail("metadata.%s is %.40q, want %s", k, v, want)
		}
	}
	switch {
	case d.Metadata[metaCreate] != "true" && d.Metadata[metaEncrypt] != "":
		fail("metadata.encryptionKey needs createFilesystem: a new key opens no old file system")
	case d.Metadata[metaCreate] == "true" && d.FSType != "ext4":
		fail("metadata.createFilesystem makes ext4 only, not %s", d.FSType)
	case d.Metadata[metaCreate] == "true" && slices.Contains(d.Options, "ro"):
		fail("metadata.createFilesystem with the option ro: a new file system that cannot be written stays empty")
	}
	return problems
}

func (d *DirectVolume) encrypted() bool { return d.Metadata[metaEncrypt] != "" }

// storage is what the runtime presents for the volume's disk.
func (d *DirectVolume) storage(spec *kubernetes.PodSpec) storage {
	st := volume{FSType: d.FSType, Options: d.Options, Shared: true}.storage("$(spath)/$(b64_device_id)")
	if d.encrypted() {
		st.DriverOptions = append(st.DriverOptions, "encryption_key="+d.Metadata[metaEncrypt])
	}
	if d.Metadata[metaCreate] == "true" {
		st.DriverOptions = append(st.DriverOptions, "create_filesystem")
	}
	change := d.Metadata[metaChange]
	if change == groupOfPod {
		change = spec.SecurityContext.FSGroupChangePolicy
	}
	switch v := d.Metadata[metaGroup]; {
	case v == groupOfPod && spec.SecurityContext.FSGroup != nil:
		st.FSGroup = &fsGroup{GroupID: uint32(*spec.SecurityContext.FSGroup)} // its range is checked with the pod's groups
	case v != "" && v != groupOfPod:
		n, _ := strconv.ParseUint(v, 10, 32) // checked with the settings
		st.FSGroup = &fsGroup{GroupID: uint32(n)}
	}
	if st.FSGroup != nil && change == onlyMismatch {
		st.FSGroup.Policy = 1
	}
	return st
}

// directVolume is what the settings say of a volume of the pod, nil if it is none that is direct-assigned, and the name that the policy
// has for its disk: that of the first volume with the same claim.
func (g *generator) directVolume(name string) (d *DirectVolume, disk string) {
	volumes := g.w.Spec.Volumes
	i := slices.IndexFunc(volumes, func(v kubernetes.Volume) bool { return v.Name == name })
	claim, class, driver := "", "", ""
	disk = name
	switch {
	case i < 0:
		for _, c := range g.w.Claims {
			if c.Metadata.Name == name {
				claim, class = name, c.Spec.StorageClass
			}
		}
	case volumes[i].Claim != nil:
		claim = volumes[i].Claim.Name
		if c := g.set.Claim(g.w, claim); c != nil {
			class = c.Spec.StorageClass
		}
		first := slices.IndexFunc(volumes, func(v kubernetes.Volume) bool { return v.Claim != nil && v.Claim.Name == claim })
		disk = volumes[first].Name
	case volumes[i].CSI != nil:
		driver = volumes[i].CSI.Driver
	case volumes[i].Ephemeral != nil:
		class = volumes[i].Ephemeral.Template.Spec.StorageClass
	}
	for _, right := range []func(*DirectVolume) bool{
		func(d *DirectVolume) bool { return claim != "" && d.Claim == claim },
		func(d *DirectVolume) bool {
			return class != "" && d.StorageClass == class || driver != "" && d.Driver == driver
		},
	} {
		for i := range g.s.DirectVolumes {
			if d := &g.s.DirectVolumes[i]; right(d) {
				return d, disk
			}
		}
	}
	return nil, ""
}

// direct adds a mount of a direct-assigned volume and its disk.
func (m *mounts) direct(where string, vm *kubernetes.VolumeMount, d *DirectVolume, disk, destination string, readOnly bool) {
	if vm.SubPath+vm.SubPathExpr != "" {
		m.g.fail(vm.At, where+".subPath", "a direct-assigned volume has no sub-paths: the host does not mount it, so the kubelet finds no directory in it")
		return
	}
	again := slices.ContainsFunc(m.storages, func(s storage) bool { return s.Volume == disk })
	if per := m.g.s.cluster.PerMount; per == nil || *per {
		again = false
	}
	m.set(mount{Destination: destination, Type: "bind", Options: bindOptions(vm, readOnly), Volume: disk})
	if again {
		return
	}
	st := d.storage(&m.g.w.Spec)
	st.Volume = disk
	m.storages = append(m.storages, st)
}

// warning says what the host has of the volume, and whether Cloister's guest takes it.
func (d *DirectVolume) warning() string {
	text := "a direct-assigned volume by the settings, whose disk is not encrypted: the host can read and change what is in it"
	if d.encrypted() {
		text = "a direct-assigned volume by the settings, whose disk is encrypted with a key made in the guest: each pod that starts finds it empty"
	}
	if !slices.Contains([]string{"ext4", "erofs", "squashfs"}, d.FSType) {
		text += "; Cloister's guest mounts ext4, erofs and squashfs and refuses " + d.FSType
	}
	return text
}
