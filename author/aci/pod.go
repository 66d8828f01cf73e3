package aci

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
)

// PodAnnotation is where virtual nodes look for the policy of a pod, in base64.
const PodAnnotation = "microsoft.containerinstance.virtualnode.ccepolicy"

// PodOptions say how a pod is read.
type PodOptions struct {
	// PinSecrets writes the values of Secrets into the policy, which is no secret. Without it those variables can have any value.
	PinSecrets bool
}

// podReader reads one workload.
type podReader struct {
	set      *kubernetes.Set
	w        *kubernetes.Workload
	o        PodOptions
	problems kubernetes.Problems
	warnings []string
}

// FromPod makes the group of a workload's pods as AKS virtual nodes run them. Warnings are facts that the user should know. The error is of
// type kubernetes.Problems and has all that was found.
func FromPod(set *kubernetes.Set, w *kubernetes.Workload, o PodOptions) (*Group, []string, error) {
	r := &podReader{set: set, w: w, o: o}
	g := &Group{Name: w.Object(), Pod: true}
	spec := &w.Spec
	if spec.HostNetwork {
		r.fail(spec.At, "hostNetwork", "a container group has its own network")
	}
	if spec.OS.Name != "" && spec.OS.Name != "linux" {
		r.fail(spec.At, "os.name", "%q is not supported", spec.OS.Name)
	}
	volumes := r.volumes()
	for _, list := range []struct {
		field string
		items []kubernetes.Container
	}{{"initContainers", spec.InitContainers}, {"containers", spec.Containers}} {
		for i := range list.items {
			g.Containers = append(g.Containers, r.container(&list.items[i], volumes, fmt.Sprintf("%s[%d]", list.field, i)))
		}
	}
	if len(g.Containers) > maxContainers {
		r.fail(spec.At, "", "more than %d containers", maxContainers)
	}
	slices.Sort(r.warnings)
	return g, slices.Compact(r.warnings), r.problems.Err()
}

func (r *podReader) fail(at kubernetes.At, path, format string, args ...any) {
	r.problems = append(r.problems, r.w.Problem(at.Node, path, format, args...))
}

func (r *podReader) warn(at kubernetes.At, path, format string, args ...any) {
	r.warnings = append(r.warnings, r.w.Problem(at.Node, path, format, args...).String())
}

// volumes says of each volume whether it is read-only by its kind. The service shows all of them in the same way.
func (r *podReader) volumes() map[string]bool {
	out := map[string]bool{}
	for _, c := range r.w.Claims {
		out[c.Metadata.Name] = false
	}
	for _, v := range r.w.Spec.Volumes {
		if v.HostPath != nil {
			r.fail(v.At, "volumes", "volume %s: a container group has no access to paths of a node", v.Name)
		}
		out[v.Name] = v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.Downward != nil || v.Claim != nil && v.Claim.ReadOnly
	}
	return out
}

func (r *podReader) container(c *kubernetes.Container, volumes map[string]bool, at string) Container {
	out := Container{Name: c.Name, Image: c.Image, WorkingDir: c.WorkingDir}
	env := r.variables(c, at)
	literal := map[string]string{}
	for _, v := range env {
		if !v.Pattern {
			literal[v.Name] = v.Value
		}
	}
	texts := func(field string, list []string) []string {
		var out []string
		for _, s := range list {
			if name := reference(s, env); name != "" {
				r.fail(c.At, at+"."+field, "%s is not bound to a value, and so cannot be a part of the command", name)
			}
			out = append(out, kubernetes.Expand(s, literal))
		}
		return out
	}
	out.Entrypoint, out.Args, out.Env = texts("command", c.Command), texts("args", c.Args), env
	if len(c.VolumeDevices) > 0 {
		r.fail(c.At, at+".volumeDevices", "a container group has no block devices")
	}
	for _, m := range c.VolumeMounts {
		readOnly, ok := volumes[m.Name]
		if !ok {
			r.fail(m.At, at+".volumeMounts", "there is no volume %q", m.Name)
		}
		out.Mounts = append(out.Mounts, Mount{Kind: "emptyDir", Path: m.MountPath, ReadOnly: m.ReadOnly || readOnly})
	}
	for _, p := range []*kubernetes.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p != nil && p.Exec != nil {
			out.Exec = append(out.Exec, p.Exec.Command)
		}
	}
	for _, h := range []*kubernetes.Hook{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
		if h != nil && h.Exec != nil {
			out.Exec = append(out.Exec, h.Exec.Command)
		}
	}
	out.Security = r.security(c)
	return out
}

func (r *podReader) security(c *kubernetes.Container) Security {
	pod, own := r.w.Spec.SecurityContext, c.Security
	s := Security{
		User: pod.RunAsUser, Group: pod.RunAsGroup, Privileged: own.Privileged, CapAdd: own.Capabilities.Add, CapDrop: own.Capabilities.Drop,
		WorkloadIdentityPod: r.w.Template.Labels["azure.workload.identity/use"] == "true",
	}
	if own.RunAsUser != nil {
		s.User = own.RunAsUser
	}
	if own.RunAsGroup != nil {
		s.Group = own.RunAsGroup
	}
	if may := own.AllowPrivilegeEscalation; may != nil {
		s.NoNewPrivileges = !*may
	}
	return s
}

// special values are replaced by the service.
var specialValue = regexp.MustCompile(`^===VIRTUALNODE2\.CC\.THIM\..+===$`)

// variables are those of the manifest: envFrom, then env; a later one replaces an earlier one.
func (r *podReader) variables(c *kubernetes.Container, at string) []Variable {
	var out []Variable
	values := map[string]string{}
	set := func(v Variable) {
		out = slices.DeleteFunc(out, func(o Variable) bool { return o.Name == v.Name })
		out = append(out, v)
		if delete(values, v.Name); !v.Pattern {
			values[v.Name] = v.Value
		}
	}
	for i, from := range c.EnvFrom {
		where := fmt.Sprintf("%s.envFrom[%d]", at, i)
		data, secret := r.envFrom(from, where)
		for _, k := range slices.Sorted(maps.Keys(data)) {
			set(r.secret(from.At, where, Variable{Name: from.Prefix + k, Value: data[k]}, secret))
		}
	}
	for i, e := range c.Env {
		where := fmt.Sprintf("%s.env[%d]", at, i)
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") {
			r.fail(e.At, where+".name", "%q is no name of a variable", e.Name)
			continue
		}
		if e.ValueFrom != nil {
			if v, ok := r.valueFrom(e, where); ok {
				set(v)
			}
			continue
		}
		v := Variable{Name: e.Name, Value: kubernetes.Expand(e.Value, values)}
		if specialValue.MatchString(e.Value) || reference(e.Value, out) != "" {
			v.Value, v.Pattern = anything, true
		}
		set(v)
	}
	return out
}

const anything = "(?s:.*)"

// secret leaves the value of a Secret out of the policy, unless it shall be in it.
func (r *podReader) secret(at kubernetes.At, where string, v Variable, secret bool) Variable {
	if !secret || r.o.PinSecrets {
		return v
	}
	r.warn(at, where, "variable %s comes from a Secret and can have any value: the policy does not bind it", v.Name)
	v.Value, v.Pattern = anything, true
	return v
}

func (r *podReader) envFrom(from kubernetes.EnvFrom, where string) (data map[string]string, secret bool) {
	ref := r.set.AllOf(r.w, &from)
	if ref == nil {
		r.fail(from.At, where, "expected exactly one of configMapRef, secretRef")
		return nil, false
	}
	if !ref.Known && !ref.Optional {
		r.fail(from.At, where, "%s %q is not known; give it by --config-file", ref.Kind, ref.Name)
	}
	return ref.Data, ref.Kind == "Secret"
}

func (r *podReader) valueFrom(e kubernetes.EnvVar, where string) (Variable, bool) {
	v := Variable{Name: e.Name}
	from := e.ValueFrom
	if ref, key := r.set.KeyOf(r.w, from); ref != nil {
		value, ok := ref.Data[key]
		secret := ref.Kind == "Secret"
		switch {
		case ok:
		case secret && !r.o.PinSecrets:
			ok = true // the value is not needed
		case !ref.Optional:
			r.fail(e.At, where, "%s %q with a key %q is not known; give it by --config-file", ref.Kind, ref.Name, key)
		}
		v.Value = value
		return r.secret(e.At, where, v, secret), ok
	}
	if from.Field == nil && from.Resource == nil {
		return v, true
	}
	if from.Field != nil && from.Field.Path == "metadata.namespace" && r.w.Namespace() != "" {
		v.Value = r.w.Namespace()
		return v, true
	}
	v.Value, v.Pattern = anything, true // known once the pod runs
	return v, true
}

// reference finds a $(NAME) of a variable without a fixed value.
func reference(s string, env []Variable) string {
	for _, v := range env {
		if v.Pattern && strings.Contains(s, "$("+v.Name+")") {
			return v.Name
		}
	}
	return ""
}
