package genpolicy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
)

// environment is an ordered list of variables with unique names, as the runtime makes it: a later one replaces an earlier.
type environment struct {
	names  []string
	values map[string]string
	// left are names that some versions of the kubelet leave out.
	left map[string]bool
}

// always are the names of variables that are there whatever the node's versions are.
func (e *environment) always() []string {
	return slices.DeleteFunc(slices.Clone(e.names), func(name string) bool { return e.left[name] })
}

// oldName is a name that every kubelet takes from a ConfigMap or Secret as a whole; older ones leave out others.
var oldName = regexp.MustCompile(`^[-._a-zA-Z][-._a-zA-Z0-9]*$`)

func (e *environment) set(name, value string) {
	if e.values == nil {
		e.values, e.left = map[string]string{}, map[string]bool{}
	}
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
	delete(e.left, name)
}

func (e *environment) list() []string {
	out := []string{}
	for _, n := range e.names {
		out = append(out, n+"="+e.values[n])
	}
	return out
}

// placeholders are texts with a meaning in rules. In a manifest they would let the host choose a value.
var placeholders = regexp.MustCompile(`\$\((sandbox-name|sandbox-namespace|host-name|node-name|pod-uid|pod-ips?|host-ips?|resource-field|todo-annotation|cluster:[A-Za-z0-9_.-]+)\)`)

// texts are what a container's process is given.
type texts struct {
	args, env []string
	required  []string          // names of env that must be there: the image's and the manifest's
	values    map[string]string // of the manifest's own variables
	cluster   map[string]string // variables of the cluster that args and env name: what can stand in their place
}

// processText is the arguments and the environment of a container.
func (g *generator) processText(path string, c *kubernetes.Container, img *imagesource.Image) texts {
	var all environment
	var args []string
	// containerd begins with a PATH, which the image's replaces. A text without value takes a variable away there.
	name, value, _ := strings.Cut(defaultPath, "=")
	all.set(name, value)
	var required []string
	for _, x := range img.Config.Env {
		if !g.take(c.At, path+".image", len(x)) {
			return texts{}
		}
		if name, value, ok := strings.Cut(x, "="); ok {
			all.set(name, value)
			required = append(required, name)
		}
	}
	required = appendMissing(nil, required)
	if c.TTY {
		all.set("TERM", "xterm")
	}
	all.set("HOSTNAME", "$(host-name)")
	cluster := map[string]string{}
	own := g.variables(path, c, cluster)
	for _, x := range img.Config.Env {
		name, _, _ := strings.Cut(x, "=")
		if _, replaced := own.values[name]; !replaced {
			g.checkImageText(path, c, x)
		}
	}
	for _, n := range own.names {
		all.set(n, own.values[n])
	}
	required = appendMissing(required, own.always())
	// What Kubernetes expands are the manifest's words, by the manifest's variables; the image's stay as they are.
	words := func(field string, list []string) {
		for i, s := range list {
			where := fmt.Sprintf("%s.%s[%d]", path, field, i)
			g.checkText(c.At, where, s)
			l := lookup{g: g, at: c.At, path: where, values: own.values, found: cluster}
			text := escapeDollars(kubernetes.ExpandBy(s, l.value))
			if !g.take(c.At, where, len(text)) {
				return
			}
			args = append(args, text)
		}
	}
	ofImage := func(list []string) {
		for _, s := range list {
			g.checkImageText(path, c, s)
			if !g.take(c.At, path+".image", len(s)) {
				return
			}
			args = append(args, escapeDollars(s))
		}
	}
	if len(c.Command) > 0 {
		words("command", c.Command)
	} else {
		ofImage(img.Config.Entrypoint)
	}
	switch {
	case len(c.Args) > 0:
		words("args", c.Args)
	case len(c.Command) == 0:
		ofImage(img.Config.Cmd)
	}
	if len(args) == 0 && g.images[c.Image] != nil && g.texts <= maxTexts {
		g.fail(c.At, path+".command", "neither the manifest nor the image names a command")
	}
	return texts{args: args, env: all.list(), required: required, values: own.values, cluster: cluster}
}

// escapeDollars undoes what rules do with arguments: they read $$ as $.
func escapeDollars(s string) string {
	if strings.Contains(s, "$$") {
		return strings.ReplaceAll(s, "$", "$$")
	}
	return s
}

func (g *generator) checkText(at kubernetes.At, path, s string) {
	if m := placeholders.FindString(s); m != "" {
		g.fail(at, path, "%s has a meaning in policies; take the value by fieldRef", m)
	}
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		g.fail(at, path, "the value is no text")
	}
}

// checkImageText is checkText for what the image says.
func (g *generator) checkImageText(path string, c *kubernetes.Container, s string) {
	if m := placeholders.FindString(s); m != "" {
		g.fail(c.At, path+".image", "it has %s in a variable or argument, which has a meaning in policies: the host could choose the value; set it in the manifest", m)
	}
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		g.fail(c.At, path+".image", "it has a variable or argument that is no text: %.80q", s)
	}
}

// variables are those of the manifest: envFrom, then env in its order. Those of the cluster that they name are put into cluster.
func (g *generator) variables(path string, c *kubernetes.Container, cluster map[string]string) environment {
	var env environment
	for i, from := range c.EnvFrom {
		where := fmt.Sprintf("%s.envFrom[%d]", path, i)
		values, secret := g.envFrom(where, from)
		for _, k := range slices.Sorted(maps.Keys(values)) {
			if !g.take(from.At, where, len(k)+len(values[k])) {
				return env
			}
			g.checkText(from.At, where+"."+k, values[k])
			name := from.Prefix + k
			_, before := env.values[name]
			env.set(name, values[k])
			if !before && !oldName.MatchString(name) {
				env.left[name] = true
			}
			g.result.Secrets = g.result.Secrets || secret && !sealed(values[k])
		}
	}
	for i, v := range c.Env {
		where := fmt.Sprintf("%s.env[%d]", path, i)
		if v.Name == "" || strings.Contains(v.Name, "=") {
			g.fail(v.At, where+".name", "%q is no name of a variable", v.Name)
			continue
		}
		if v.ValueFrom == nil {
			g.checkText(v.At, where+".value", v.Value)
			l := lookup{g: g, at: v.At, path: where + ".value", values: env.values, inEnv: true, found: cluster}
			value := kubernetes.ExpandBy(v.Value, l.value)
			if !g.take(v.At, where+".value", len(v.Name)+len(value)) {
				return env
			}
			env.set(v.Name, value)
			continue
		}
		if value, ok := g.envValue(where+".valueFrom", v); ok {
			if !g.take(v.At, where+".valueFrom", len(v.Name)+len(value)) {
				return env
			}
			env.set(v.Name, value)
		}
	}
	return env
}

func (g *generator) envFrom(where string, from kubernetes.EnvFrom) (values map[string]string, secret bool) {
	switch {
	case from.ConfigMap != nil:
		values, _, ok := g.set.ConfigMap(g.w, from.ConfigMap.Name)
		if !ok {
			g.unknownSet(from, where, "ConfigMap", from.ConfigMap.Name, from.ConfigMap.Optional)
		}
		return values, false
	case from.Secret != nil:
		values, ok := g.set.Secret(g.w, from.Secret.Name)
		if !ok {
			g.unknownSet(from, where, "Secret", from.Secret.Name, from.Secret.Optional)
		}
		return values, true
	}
	return nil, false
}

func (g *generator) unknownSet(from kubernetes.EnvFrom, where, kind, name string, optional bool) {
	if optional {
		g.warn(from.At, where, "%s %q is not known: no variables of it are allowed", kind, name)
		return
	}
	g.fail(from.At, where, "%s %q is not known; give it by --config-file", kind, name)
}

// sealed secrets are ciphertext.
func sealed(value string) bool { return strings.HasPrefix(value, "sealed.") }

// envValue is the value of a variable that comes from elsewhere; ok is false if there is none, as for an optional key.
func (g *generator) envValue(where string, v kubernetes.EnvVar) (value string, ok bool) {
	key := func(kind string, r *kubernetes.KeyRef, values map[string]string, known bool) (string, bool) {
		value, ok := values[r.Key]
		switch {
		case ok:
			g.checkText(v.At, where, value)
		case r.Optional && known:
		case r.Optional:
			g.warn(v.At, where, "%s %q is not known: a variable %s is not allowed", kind, r.Name, v.Name)
		case !known:
			g.fail(v.At, where, "%s %q is not known; give it by --config-file", kind, r.Name)
		default:
			g.fail(v.At, where, "%s %q has no key %q", kind, r.Name, r.Key)
		}
		return value, ok
	}
	from := v.ValueFrom
	switch {
	case from.ConfigMap != nil:
		values, _, known := g.set.ConfigMap(g.w, from.ConfigMap.Name)
		return key("ConfigMap", from.ConfigMap, values, known)
	case from.Secret != nil:
		values, known := g.set.Secret(g.w, from.Secret.Name)
		value, ok := key("Secret", from.Secret, values, known)
		g.result.Secrets = g.result.Secrets || ok && !sealed(value)
		return value, ok
	case from.Resource != nil:
		return "$(resource-field)", true
	case from.Field != nil:
		return g.field(where+".fieldRef.fieldPath", from.Field)
	}
	return "", true
}

var subscript = regexp.MustCompile(`^metadata\.(labels|annotations)\['(.*)'\]$`)

func (g *generator) field(where string, f *kubernetes.FieldRef) (string, bool) {
	switch f.Path {
	case "metadata.name":
		return "$(sandbox-name)", true
	case "metadata.namespace":
		if ns := g.namespace(); ns != "" {
			return ns, true
		}
		return "$(sandbox-namespace)", true
	case "metadata.uid":
		return "$(pod-uid)", true
	case "status.hostIP":
		return "$(host-ip)", true
	case "status.hostIPs":
		return "$(host-ips)", true
	case "status.podIP":
		return "$(pod-ip)", true
	case "status.podIPs":
		return "$(pod-ips)", true
	case "spec.nodeName":
		return "$(node-name)", true
	case "spec.serviceAccountName":
		for _, name := range []string{g.w.Spec.ServiceAccountName, g.w.Spec.ServiceAccount} {
			if name != "" {
				return name, true
			}
		}
		return "default", true
	}
	m := subscript.FindStringSubmatch(f.Path)
	switch {
	case m == nil:
		g.fail(f.At, where, "field %q is not supported", f.Path)
		return "", false
	case m[1] == "labels":
		value, ok := g.w.Template.Labels[m[2]]
		if !ok {
			if controllerLabel(m[2]) {
				return "$(todo-annotation)", true
			}
			g.fail(f.At, where, "the pods have no label %q", m[2])
		}
		g.checkText(f.At, where, value)
		return value, ok
	}
	if value, ok := g.w.Template.Annotations[m[2]]; ok {
		g.checkText(f.At, where, value)
		return value, true
	}
	return "$(todo-annotation)", true
}

// controllerLabel says whether controllers, not manifests, set a label.
func controllerLabel(key string) bool {
	return slices.Contains([]string{"controller-revision-hash", "pod-template-hash", "job-name", "controller-uid"}, key) ||
		strings.HasPrefix(key, "batch.kubernetes.io/") || strings.HasPrefix(key, "statefulset.kubernetes.io/") || strings.HasPrefix(key, "apps.kubernetes.io/")
}
