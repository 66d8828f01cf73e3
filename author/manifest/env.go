package manifest

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
)

// variable is one environment variable.
type variable struct{ name, value string }

// Addresses that a pod sees: the guest's user-mode network.
const (
	podIP  = "10.0.2.15"
	hostIP = "10.0.2.2"
)

// fieldKey reads metadata.labels['k'] and metadata.annotations['k'].
var fieldKey = regexp.MustCompile(`^metadata\.(labels|annotations)\['([^']+)'\]$`)

// envSource resolves a valueFrom. set is false for an optional source that is absent.
func (m *Manifest) envSource(src kubernetes.EnvValue) (value string, set bool, err error) {
	n := 0
	for _, given := range []bool{src.ConfigMap != nil, src.Secret != nil, src.Field != nil} {
		if given {
			n++
		}
	}
	if n != 1 {
		return "", false, fmt.Errorf("expected exactly one of configMapKeyRef, secretKeyRef, fieldRef")
	}
	ref, key := m.set.KeyOf(m.Pod, &src)
	if ref == nil {
		value, err = m.podField(src.Field.Path)
		return value, err == nil, err
	}
	v, ok := ref.Data[key]
	_, binary := ref.Binary[key]
	switch {
	case !ref.Known && !ref.Optional:
		return "", false, m.unknown(ref)
	case binary || ok && !printable(v):
		return "", false, fmt.Errorf("%s %q key %q is binary and cannot be a variable", ref.Kind, ref.Name, key)
	case !ok && !ref.Optional:
		return "", false, fmt.Errorf("%s %q has no key %q", ref.Kind, ref.Name, key)
	}
	return v, ok, nil
}

func (m *Manifest) unknown(r *kubernetes.Reference) error {
	return fmt.Errorf("%s %q is in none of the given files, for namespace %s", r.Kind, r.Name, m.namespace())
}

func (m *Manifest) podField(p string) (string, error) {
	switch p {
	case "metadata.name":
		return m.Pod.Meta.Name, nil
	case "metadata.namespace":
		return m.namespace(), nil
	case "spec.serviceAccountName":
		return cmp.Or(m.Pod.Spec.ServiceAccountName, m.Pod.Spec.ServiceAccount, "default"), nil
	case "status.podIP", "status.podIPs":
		return podIP, nil
	case "status.hostIP", "status.hostIPs":
		return hostIP, nil
	}
	if f := fieldKey.FindStringSubmatch(p); f != nil {
		set := m.Pod.Meta.Labels
		if f[1] == "annotations" {
			set = m.Pod.Meta.Annotations
		}
		v, ok := set[f[2]]
		if !ok {
			return "", fmt.Errorf("fieldPath %s: the pod has no such key", p)
		}
		return v, nil
	}
	return "", fmt.Errorf("fieldPath %q is not supported; expected metadata.name, metadata.namespace, metadata.labels['k'], metadata.annotations['k'], spec.serviceAccountName, status.podIP or status.hostIP", p)
}

// envFrom lists the variables of an object in the order of their names. Keys that
// cannot be variables are left out, as Kubernetes does.
func (m *Manifest) envFrom(e kubernetes.EnvFrom) ([]variable, error) {
	ref := m.set.AllOf(m.Pod, &e)
	switch {
	case ref == nil:
		return nil, fmt.Errorf("expected exactly one of configMapRef, secretRef")
	case !ref.Known && !ref.Optional:
		return nil, m.unknown(ref)
	}
	var out []variable
	for k, v := range ref.Data {
		if envName.MatchString(e.Prefix+k) && printable(v) {
			out = append(out, variable{e.Prefix + k, v})
		}
	}
	slices.SortFunc(out, func(a, b variable) int { return strings.Compare(a.name, b.name) })
	return out, nil
}

// containerEnv resolves envFrom and env of a container: the variables of the
// manifest in order, and their values for $(NAME) in commands.
func (m *Manifest) containerEnv(x *kubernetes.Container) ([]variable, map[string]string, error) {
	values := map[string]string{}
	var inherited, own []variable
	for i, e := range x.EnvFrom {
		vars, err := m.envFrom(e)
		if err != nil {
			return nil, nil, fmt.Errorf("envFrom[%d]: %w", i, err)
		}
		for _, v := range vars {
			values[v.name] = v.value
		}
		inherited = append(inherited, vars...)
	}
	for i, e := range x.Env {
		value, set := kubernetes.Expand(e.Value, values), true
		if e.ValueFrom != nil {
			var err error
			if value, set, err = m.envSource(*e.ValueFrom); err != nil {
				return nil, nil, fmt.Errorf("env[%d] %s: %w", i, e.Name, err)
			}
		}
		if !set {
			continue
		}
		values[e.Name] = value
		own = append(own, variable{e.Name, value})
	}
	return append(inherited, own...), values, nil
}

// mergeEnv lays variables over NAME=value strings: a name that is already there
// keeps its place and gets the new value, others follow in order.
func mergeEnv(base []string, over []variable) []string {
	out := []string{}
	index := map[string]int{}
	set := func(name, line string) {
		if i, ok := index[name]; ok {
			out[i] = line
			return
		}
		index[name] = len(out)
		out = append(out, line)
	}
	for _, line := range base {
		name, _, _ := strings.Cut(line, "=")
		set(name, line)
	}
	for _, v := range over {
		set(v.name, v.name+"="+v.value)
	}
	return out
}

// ClearSecrets lists where values of Secrets that are not sealed end in the requests of the pod, and so in its policy: in
// variables, in what is made of those by $(NAME), and in arguments. Files of Secret volumes are bound by digest instead.
func ClearSecrets(m *Manifest) []string {
	var out []string
	for _, list := range [][]kubernetes.Container{m.Pod.Spec.InitContainers, m.Pod.Spec.Containers} {
		for i := range list {
			x := &list[i]
			secret := m.clearVariables(x)
			for _, name := range slices.Sorted(maps.Keys(secret)) {
				out = append(out, fmt.Sprintf("variable %s of container %s", name, x.Name))
			}
			if slices.ContainsFunc(slices.Concat(x.Command, x.Args), func(s string) bool { return mentions(s, secret) }) {
				out = append(out, "the arguments of container "+x.Name)
			}
		}
	}
	return out
}

// clearVariables are the variables of a container that hold what is not sealed of a Secret.
func (m *Manifest) clearVariables(x *kubernetes.Container) map[string]bool {
	secret := map[string]bool{}
	for _, e := range x.EnvFrom {
		ref := m.set.AllOf(m.Pod, &e)
		if ref == nil || ref.Kind != "Secret" {
			continue
		}
		for k, v := range ref.Data {
			if !sealed(v) && envName.MatchString(e.Prefix+k) && printable(v) {
				secret[e.Prefix+k] = true
			}
		}
	}
	for _, e := range x.Env {
		hit := mentions(e.Value, secret)
		if ref, key := m.set.KeyOf(m.Pod, e.ValueFrom); ref != nil && ref.Kind == "Secret" {
			v, ok := ref.Data[key]
			hit = ok && !sealed(v)
		}
		if hit {
			secret[e.Name] = true
		} else {
			delete(secret, e.Name) // a later entry replaces an earlier one
		}
	}
	return secret
}

// mentions says whether a text refers to one of the variables as $(NAME).
func mentions(text string, names map[string]bool) bool {
	for name := range names {
		if strings.Contains(text, "$("+name+")") {
			return true
		}
	}
	return false
}

// sealed values are opened in the guest; what the host sees of them is encrypted.
func sealed(v string) bool { return strings.HasPrefix(v, "sealed.") }
