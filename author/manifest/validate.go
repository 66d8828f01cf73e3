package manifest

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
)

// checker finds what is wrong with a pod beyond the types of its fields.
type checker struct {
	manifest *Manifest
	problems kubernetes.Problems
}

var (
	dnsLabel     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	dnsSubdomain = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	envName      = regexp.MustCompile(`^[-._a-zA-Z][-._a-zA-Z0-9]*$`)
	fileKey      = regexp.MustCompile(`^[-._a-zA-Z0-9]{1,253}$`)
	sysctlName   = regexp.MustCompile(`^[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)*$`)
)

// reservedMounts cannot be replaced by a volume.
var reservedMounts = []string{"/proc", "/sys", "/dev"}

// fileMounts are provided by Cloister itself.
var fileMounts = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}

func (c *checker) fail(p, format string, args ...any) {
	if len(c.problems) >= kubernetes.MaxProblems {
		return
	}
	c.problems = append(c.problems, c.manifest.Pod.Fault(p, format, args...))
}

func (c *checker) pod() {
	p := c.manifest.Pod
	if !dnsSubdomain.MatchString(p.Meta.Name) {
		c.fail("metadata.name", "%q is not a DNS name (lower case letters, digits, '-', '.')", p.Meta.Name)
	}
	if p.Meta.Namespace != "" && !dnsLabel.MatchString(p.Meta.Namespace) {
		c.fail("metadata.namespace", "%q is not a DNS label", p.Meta.Namespace)
	}
	if p.Spec.Hostname != "" && !dnsLabel.MatchString(p.Spec.Hostname) {
		c.fail("spec.hostname", "%q is not a DNS label", p.Spec.Hostname)
	}
	switch p.Spec.RestartPolicy {
	case "", "Always", "OnFailure", "Never":
	default:
		c.fail("spec.restartPolicy", "%q is not Always, OnFailure or Never", p.Spec.RestartPolicy)
	}
	if s := p.Spec.GracePeriodSeconds; s != nil && *s < 0 {
		c.fail("spec.terminationGracePeriodSeconds", "%d is negative", *s)
	}
	if len(p.Spec.Containers) == 0 {
		c.fail("spec.containers", "a pod needs at least one container")
	}
	if p.Spec.ShareProcessNamespace && len(p.Spec.InitContainers) > 0 {
		c.fail("spec.shareProcessNamespace", "not supported together with initContainers: the namespace would end with the first of them")
	}
	sc := p.Spec.SecurityContext
	c.ids("spec.securityContext", sc.RunAsUser, sc.RunAsGroup, sc.FSGroup)
	for i := range sc.SupplementalGroups {
		c.ids(fmt.Sprintf("spec.securityContext.supplementalGroups[%d]", i), &sc.SupplementalGroups[i])
	}
	for i, s := range sc.Sysctls {
		if !sysctlName.MatchString(s.Name) || !allowedSysctl(s.Name) {
			c.fail(fmt.Sprintf("spec.securityContext.sysctls[%d].name", i), "%q is not a parameter of the pod's namespaces (kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*)", s.Name)
		}
	}
	volumes := c.volumes()
	names := map[string]bool{}
	for i := range p.Spec.InitContainers {
		c.container(fmt.Sprintf("spec.initContainers[%d]", i), &p.Spec.InitContainers[i], names, volumes)
		if ic := p.Spec.InitContainers[i]; ic.LivenessProbe != nil || ic.ReadinessProbe != nil || ic.StartupProbe != nil || ic.Lifecycle != (kubernetes.Lifecycle{}) {
			c.fail(fmt.Sprintf("spec.initContainers[%d]", i), "init containers have no probes and no lifecycle hooks")
		}
	}
	for i := range p.Spec.Containers {
		c.container(fmt.Sprintf("spec.containers[%d]", i), &p.Spec.Containers[i], names, volumes)
	}
}

// allowedSysctl: the network namespace is the guest's own and shared, so net.* is
// left alone; the rest are parameters of the IPC namespace.
func allowedSysctl(name string) bool {
	name = strings.ReplaceAll(name, "/", ".")
	switch name {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
		return true
	}
	return strings.HasPrefix(name, "fs.mqueue.")
}

func (c *checker) ids(p string, ids ...*int64) {
	for _, id := range ids {
		if id != nil && (*id < 0 || *id > 1<<31-1) {
			c.fail(p, "id %d is not between 0 and 2147483647", *id)
		}
	}
}

func (c *checker) volumes() map[string]bool {
	names := map[string]bool{}
	for i, v := range c.manifest.Pod.Spec.Volumes {
		p := fmt.Sprintf("spec.volumes[%d]", i)
		if !dnsLabel.MatchString(v.Name) {
			c.fail(p+".name", "%q is not a DNS label", v.Name)
		} else if names[v.Name] {
			c.fail(p+".name", "%q is used twice", v.Name)
		}
		names[v.Name] = true
		n := 0
		if v.EmptyDir != nil {
			n++
			c.emptyDir(p+".emptyDir", v.EmptyDir)
		}
		if v.ConfigMap != nil {
			n++
			c.objectVolume(p+".configMap", &kubernetes.Volume{ConfigMap: v.ConfigMap})
		}
		if v.Secret != nil {
			n++
			c.objectVolume(p+".secret", &kubernetes.Volume{Secret: v.Secret})
		}
		if n != 1 && !c.reported(p) {
			c.fail(p, "expected exactly one of emptyDir, configMap, secret")
		}
	}
	return names
}

// reported: a problem below this path has already been found (an unsupported type).
func (c *checker) reported(p string) bool {
	below := c.manifest.Pod.Fault(p, "").Path + "."
	for _, x := range c.problems {
		if strings.HasPrefix(x.Path, below) {
			return true
		}
	}
	return false
}

func (c *checker) emptyDir(p string, e *kubernetes.EmptyDir) {
	switch e.Medium {
	case "", "Memory":
	default:
		c.fail(p+".medium", "%q is not supported; use Memory or leave it out (both are memory of the guest)", e.Medium)
	}
	if e.SizeLimit != "" {
		if v, err := e.SizeLimit.Bytes(); err != nil {
			c.fail(p+".sizeLimit", "%v", err)
		} else if v <= 0 {
			c.fail(p+".sizeLimit", "must be more than 0")
		}
	}
}

// objectVolume checks a volume of a ConfigMap or Secret.
func (c *checker) objectVolume(p string, v *kubernetes.Volume) {
	ref, items, mode := c.manifest.set.FilesOf(c.manifest.Pod, v)
	if ref.Name == "" {
		c.fail(p, "no name given")
		return
	}
	if !ref.Known && !ref.Optional {
		c.fail(p, "%v", c.manifest.unknown(ref))
		return
	}
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		c.fail(p+".defaultMode", "%#o is not between 0 and 0777", *mode)
	}
	kind, name, data := ref.Kind, ref.Name, ref.Files()
	if kind == "Secret" {
		c.warnUnsealed(name, data)
	}
	paths := map[string]bool{}
	for i, it := range items {
		ip := fmt.Sprintf("%s.items[%d]", p, i)
		if _, ok := data[it.Key]; !ok && !ref.Optional {
			c.fail(ip+".key", "%s %q has no key %q", kind, name, it.Key)
		}
		if !fileKey.MatchString(it.Path) || it.Path == "." || strings.HasPrefix(it.Path, "..") {
			c.fail(ip+".path", "%q is not a plain file name (sub-directories are not supported)", it.Path)
		}
		if paths[it.Path] {
			c.fail(ip+".path", "%q is used twice", it.Path)
		}
		paths[it.Path] = true
		if it.Mode != nil && (*it.Mode < 0 || *it.Mode > 0o777) {
			c.fail(ip+".mode", "%#o is not between 0 and 0777", *it.Mode)
		}
	}
	for k, v := range data {
		if !fileKey.MatchString(k) || k == "." || strings.HasPrefix(k, "..") {
			c.fail(p, "%s %q has the key %q, which is not a file name", kind, name, k)
		}
		if len(v) > maxVolumeFile {
			c.fail(p, "%s %q key %q has %d bytes, the limit is %d", kind, name, k, len(v), maxVolumeFile)
		}
	}
}

// warnUnsealed: what stands in a Secret passes through the host.
func (c *checker) warnUnsealed(name string, data map[string]string) {
	for _, v := range data {
		if !sealed(v) {
			c.manifest.Warnings = append(c.manifest.Warnings,
				fmt.Sprintf("Secret %q is not sealed: the host can read it; what must stay secret belongs in the broker", name))
			return
		}
	}
}

func (c *checker) container(p string, x *kubernetes.Container, names, volumes map[string]bool) {
	if !dnsLabel.MatchString(x.Name) {
		c.fail(p+".name", "%q is not a DNS label", x.Name)
	} else if names[x.Name] {
		c.fail(p+".name", "%q is used twice", x.Name)
	}
	names[x.Name] = true
	if x.Image == "" {
		c.fail(p+".image", "no image given")
	}
	if x.WorkingDir != "" && !path.IsAbs(x.WorkingDir) {
		c.fail(p+".workingDir", "%q is not absolute", x.WorkingDir)
	}
	c.ids(p+".securityContext", x.Security.RunAsUser, x.Security.RunAsGroup)
	for i, cap := range x.Security.Capabilities.Add {
		if _, ok := capability(cap); !ok {
			c.fail(fmt.Sprintf("%s.securityContext.capabilities.add[%d]", p, i), "%q is not a Linux capability", cap)
		}
	}
	for i, cap := range x.Security.Capabilities.Drop {
		if _, ok := capability(cap); !ok {
			c.fail(fmt.Sprintf("%s.securityContext.capabilities.drop[%d]", p, i), "%q is not a Linux capability", cap)
		}
	}
	c.resources(p+".resources", x.Resources)
	c.env(p, x)
	c.mounts(p, x, volumes)
	for name, pr := range map[string]*kubernetes.Probe{"livenessProbe": x.LivenessProbe, "readinessProbe": x.ReadinessProbe, "startupProbe": x.StartupProbe} {
		if pr != nil && pr.Exec != nil {
			c.execAction(p+"."+name+".exec", pr.Exec)
		}
	}
	for name, h := range map[string]*kubernetes.Hook{"postStart": x.Lifecycle.PostStart, "preStop": x.Lifecycle.PreStop} {
		if h != nil && h.Exec != nil {
			c.execAction(p+".lifecycle."+name+".exec", h.Exec)
		}
	}
}

func (c *checker) execAction(p string, e *kubernetes.Exec) {
	if len(e.Command) == 0 || e.Command[0] == "" {
		c.fail(p+".command", "no command given")
	}
}

func (c *checker) resources(p string, r kubernetes.Resources) {
	for _, set := range []struct {
		name   string
		values map[string]kubernetes.Quantity
	}{{"limits", r.Limits}, {"requests", r.Requests}} {
		for k, q := range set.values {
			sub := p + "." + set.name + "." + k
			var err error
			switch k {
			case "cpu":
				_, err = q.Milli()
			case "memory":
				_, err = q.Bytes()
			case "ephemeral-storage":
				_, err = q.Bytes()
			default:
				err = fmt.Errorf("not supported; expected cpu or memory")
			}
			if err != nil {
				c.fail(sub, "%v", err)
			}
		}
	}
}

func (c *checker) env(p string, x *kubernetes.Container) {
	for i, e := range x.Env {
		ep := fmt.Sprintf("%s.env[%d]", p, i)
		if !envName.MatchString(e.Name) {
			c.fail(ep+".name", "%q is not a name of a variable", e.Name)
		}
		if e.ValueFrom == nil {
			continue
		}
		if e.Value != "" {
			c.fail(ep, "value and valueFrom exclude each other")
		}
		if _, _, err := c.manifest.envSource(*e.ValueFrom); err != nil && !c.reported(ep+".valueFrom") {
			c.fail(ep+".valueFrom", "%v", err)
		}
	}
	for i, e := range x.EnvFrom {
		ep := fmt.Sprintf("%s.envFrom[%d]", p, i)
		if _, err := c.manifest.envFrom(e); err != nil {
			c.fail(ep, "%v", err)
		}
		if e.Prefix != "" && !envName.MatchString(e.Prefix) {
			c.fail(ep+".prefix", "%q cannot start the name of a variable", e.Prefix)
		}
	}
}

func (c *checker) mounts(p string, x *kubernetes.Container, volumes map[string]bool) {
	seen := map[string]bool{}
	for i, m := range x.VolumeMounts {
		mp := fmt.Sprintf("%s.volumeMounts[%d]", p, i)
		if !volumes[m.Name] {
			c.fail(mp+".name", "there is no volume %q", m.Name)
		}
		clean := path.Clean(m.MountPath)
		switch {
		case !path.IsAbs(m.MountPath) || clean == "/" || strings.ContainsAny(m.MountPath, ":\x00"):
			c.fail(mp+".mountPath", "%q is not an absolute path below /", m.MountPath)
		case seen[clean]:
			c.fail(mp+".mountPath", "%q is used twice", m.MountPath)
		case below(clean, reservedMounts) && clean != "/dev/shm":
			c.fail(mp+".mountPath", "%q belongs to the system", m.MountPath)
		case below(clean, fileMounts):
			c.fail(mp+".mountPath", "%q is provided by Cloister", m.MountPath)
		}
		seen[clean] = true
	}
}

func below(p string, roots []string) bool {
	for _, r := range roots {
		if p == r || strings.HasPrefix(p, r+"/") {
			return true
		}
	}
	return false
}
