package kubernetes

import (
	"encoding/base64"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Options of Parse.
type Options struct {
	// RuntimeClasses selects workloads: those whose runtimeClassName starts with one of them. Empty selects all.
	RuntimeClasses []string
	// IgnoreUnknown accepts fields of pods that are not known. What they do to the guest, the policy does not allow for.
	IgnoreUnknown bool
}

// Workload is one object that makes pods.
type Workload struct {
	File     string
	Kind     string
	Meta     Metadata // of the object
	Template Metadata // of its pods; the same for a Pod
	Spec     PodSpec
	Claims   []Claim // volumeClaimTemplates
	Path     string  // of the pod spec in the document, "spec.template.spec"

	pod   *yaml.Node // the mapping that holds metadata and spec of the pod
	file  *File
	doc   int   // index of the document in the file
	steps []any // from the document to pod: keys and indices
}

// Object is "Deployment/web", for messages.
func (w *Workload) Object() string {
	name := w.Meta.Name
	if name == "" {
		name = w.Meta.GenerateName
	}
	return w.Kind + "/" + name
}

// Namespace of the pods; empty if the manifest leaves it open.
func (w *Workload) Namespace() string { return w.Meta.Namespace }

// Problem is a problem at a place of this workload. at is below the pod's spec; n may be nil.
func (w *Workload) Problem(n *yaml.Node, at, format string, args ...any) Problem {
	p := Problem{File: w.File, Object: w.Object(), Path: w.Path, Message: fmt.Sprintf(format, args...)}
	if at != "" {
		p.Path += "." + at
	}
	if n == nil {
		n = w.Spec.Node
	}
	if n != nil {
		p.Line = n.Line
	}
	return p
}

// File is one input and the changes to make.
type File struct {
	Input
	docs  []*yaml.Node
	edits []edit
	meant []meaning
}

// Set is everything that was read.
type Set struct {
	Files     []*File
	Workloads []*Workload
	// Passed are the runtimeClassNames of the pods that Options.RuntimeClasses left out: sorted, each once, "" for none.
	Passed []string

	configMaps map[string]*ConfigMap // by namespace/name
	secrets    map[string]*Secret
	claims     map[string]*Claim
	opts       Options
	problems   Problems
}

// podKinds says where the pod of a kind is.
var podKinds = map[string][]string{
	"Pod":                   {},
	"Deployment":            {"spec", "template"},
	"ReplicaSet":            {"spec", "template"},
	"ReplicationController": {"spec", "template"},
	"StatefulSet":           {"spec", "template"},
	"DaemonSet":             {"spec", "template"},
	"Job":                   {"spec", "template"},
	"CronJob":               {"spec", "jobTemplate", "spec", "template"},
}

var podGroups = map[string][]string{
	"Pod": {"v1"}, "ReplicationController": {"v1"},
	"Deployment": {"apps/"}, "ReplicaSet": {"apps/"}, "StatefulSet": {"apps/"}, "DaemonSet": {"apps/"},
	"Job": {"batch/"}, "CronJob": {"batch/"},
}

// Parse reads manifests, and more ConfigMaps, Secrets and claims from data, whose other objects are ignored. The error
// is of type Problems and has all that was found; the Set is usable all the same for further checks.
func Parse(inputs, data []Input, opts Options) (*Set, error) {
	s := &Set{opts: opts, configMaps: map[string]*ConfigMap{}, secrets: map[string]*Secret{}, claims: map[string]*Claim{}}
	for _, in := range inputs {
		f := &File{Input: in}
		f.docs = documents(in, &s.problems)
		s.Files = append(s.Files, f)
		for i, n := range f.docs {
			s.add(f, n, place{doc: i}, false)
		}
	}
	for _, in := range data {
		f := &File{Input: in}
		for i, n := range documents(in, &s.problems) {
			s.add(f, n, place{doc: i}, true)
		}
	}
	return s, s.problems.Err()
}

// place is where an object is in a file.
type place struct {
	doc   int
	steps []any  // within lists
	item  string // the same as text
}

func (s *Set) add(f *File, n *yaml.Node, at place, dataOnly bool) {
	item := at.item
	fail := func(path, format string, args ...any) {
		s.problems = append(s.problems, Problem{File: f.Name, Line: n.Line, Path: path, Message: fmt.Sprintf(format, args...)})
	}
	if n.Kind != yaml.MappingNode {
		fail(item, "expected a Kubernetes object, got %s", kindName(n))
		return
	}
	kind, version := text(n, "kind"), text(n, "apiVersion")
	where := item
	if where != "" {
		where += "."
	}
	_, isPod := podKinds[kind]
	switch {
	case kind == "":
		fail(where+"kind", "missing")
	case kind == "List" || strings.HasSuffix(kind, "List") && child(n, "items") != nil:
		if len(at.steps) > 16 {
			fail(item, "lists within lists")
			return
		}
		items := child(n, "items")
		if items == nil || items.Kind != yaml.SequenceNode {
			return
		}
		for i, x := range items.Content {
			s.add(f, resolve(x), place{at.doc, append(slices.Clone(at.steps), "items", i), fmt.Sprintf("%sitems[%d]", where, i)}, dataOnly)
		}
	case kind == "ConfigMap" && version == "v1":
		s.addConfigMap(f, n)
	case kind == "Secret" && version == "v1":
		s.addSecret(f, n)
	case kind == "PersistentVolumeClaim" && version == "v1":
		c := &Claim{}
		s.decode(f, n, "PersistentVolumeClaim/"+name(n), where, reflect.ValueOf(c).Elem())
		s.claims[key(c.Metadata)] = c
	case dataOnly:
	case isPod && ofGroup(kind, version):
		s.addWorkload(f, n, kind, at)
	case isPod && !strings.Contains(version, ".") || kind == "PodTemplate":
		fail(where+"apiVersion", "%s of %q is not supported, expected %s", kind, version, strings.Join(podGroups[kind], " or "))
	default:
		if at := findPod(n, "", 0); at != "" {
			fail(where+at, "kind %s of %s has containers, and how it makes pods of them is not known; give what its controller makes", kind, version)
		}
	}
}

func ofGroup(kind, version string) bool {
	return slices.ContainsFunc(podGroups[kind], func(g string) bool {
		return version == g || strings.HasSuffix(g, "/") && strings.HasPrefix(version, g)
	})
}

func (s *Set) decode(f *File, n *yaml.Node, object, where string, v reflect.Value) {
	d := decoder{file: f.Name, object: object, problems: &s.problems, lenient: s.opts.IgnoreUnknown}
	d.decode(n, strings.TrimSuffix(where, "."), v, 0)
}

func (s *Set) addWorkload(f *File, n *yaml.Node, kind string, at place) {
	item := at.item
	w := &Workload{File: f.Name, Kind: kind, file: f, doc: at.doc, steps: slices.Clone(at.steps)}
	object := kind + "/" + name(n)
	prefix := ""
	if item != "" {
		prefix = item + "."
	}
	pod, path := n, prefix
	for _, step := range podKinds[kind] {
		if pod = child(pod, step); pod == nil {
			s.problems = append(s.problems, Problem{f.Name, n.Line, object, path + step, "missing"})
			return
		}
		path += step + "."
		w.steps = append(w.steps, step)
	}
	spec := child(pod, "spec")
	if spec == nil {
		s.problems = append(s.problems, Problem{f.Name, pod.Line, object, path + "spec", "missing"})
		return
	}
	if class := text(spec, "runtimeClassName"); !s.selected(class) {
		if at, known := slices.BinarySearch(s.Passed, class); !known {
			s.Passed = slices.Insert(s.Passed, at, class)
		}
		return
	}
	w.pod, w.Path = pod, path+"spec"
	if m := child(n, "metadata"); m != nil {
		s.decode(f, m, object, prefix+"metadata", reflect.ValueOf(&w.Meta).Elem())
	}
	w.Template = w.Meta
	if pod != n {
		w.Template = Metadata{}
		if m := child(pod, "metadata"); m != nil {
			s.decode(f, m, object, path+"metadata", reflect.ValueOf(&w.Template).Elem())
		}
		if kind == "StatefulSet" {
			if c := child(child(n, "spec"), "volumeClaimTemplates"); c != nil {
				s.decode(f, c, object, prefix+"spec.volumeClaimTemplates", reflect.ValueOf(&w.Claims).Elem())
			}
		}
	}
	s.decode(f, spec, object, w.Path, reflect.ValueOf(&w.Spec).Elem())
	s.Workloads = append(s.Workloads, w)
}

func (s *Set) selected(class string) bool {
	return len(s.opts.RuntimeClasses) == 0 || slices.ContainsFunc(s.opts.RuntimeClasses, func(p string) bool {
		return class != "" && strings.HasPrefix(class, p)
	})
}

func (s *Set) addConfigMap(f *File, n *yaml.Node) {
	c := &ConfigMap{}
	object := "ConfigMap/" + name(n)
	s.decode(f, n, object, "", reflect.ValueOf(c).Elem())
	c.BinaryData = s.binary(f, n, object, "binaryData", c.BinaryData)
	if old, ok := s.configMaps[key(c.Metadata)]; ok && (!maps.Equal(old.Data, c.Data) || !maps.Equal(old.BinaryData, c.BinaryData)) {
		s.problems = append(s.problems, Problem{f.Name, n.Line, object, "metadata.name", "given twice, with different content"})
	}
	s.configMaps[key(c.Metadata)] = c
}

func (s *Set) addSecret(f *File, n *yaml.Node) {
	c := &Secret{}
	object := "Secret/" + name(n)
	s.decode(f, n, object, "", reflect.ValueOf(c).Elem())
	c.Data = s.binary(f, n, object, "data", c.Data)
	for k, v := range c.StringData { // stringData wins, as in Kubernetes
		c.Data[k] = v
	}
	if old, ok := s.secrets[key(c.Metadata)]; ok && !maps.Equal(old.Data, c.Data) {
		s.problems = append(s.problems, Problem{f.Name, n.Line, object, "metadata.name", "given twice, with different content"})
	}
	s.secrets[key(c.Metadata)] = c
}

// binary decodes base64 values. They stay out of messages.
func (s *Set) binary(f *File, n *yaml.Node, object, field string, values map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range values {
		raw, err := base64.StdEncoding.DecodeString(strings.NewReplacer("\n", "", "\r", "", " ", "").Replace(v))
		if err != nil {
			line := n.Line
			if at := child(child(n, field), k); at != nil {
				line = at.Line
			}
			s.problems = append(s.problems, Problem{f.Name, line, object, join(field, k), "not base64"})
			continue
		}
		out[k] = string(raw)
	}
	return out
}

// ConfigMap returns the keys of a ConfigMap that w can use; those of binary have no place in the environment.
func (s *Set) ConfigMap(w *Workload, name string) (data, binary map[string]string, ok bool) {
	if c := lookup(s.configMaps, w, name); c != nil {
		return c.Data, c.BinaryData, true
	}
	return nil, nil, false
}

// Secret returns the keys of a Secret that w can use.
func (s *Set) Secret(w *Workload, name string) (map[string]string, bool) {
	if c := lookup(s.secrets, w, name); c != nil {
		return c.Data, true
	}
	return nil, false
}

// Claim returns a claim that w can use, nil if it is not known.
func (s *Set) Claim(w *Workload, name string) *Claim {
	for i := range w.Claims {
		if w.Claims[i].Metadata.Name == name {
			return &w.Claims[i]
		}
	}
	return lookup(s.claims, w, name)
}

// lookup finds an object in the workload's namespace. Manifests often leave the namespace to kubectl, on either side.
func lookup[T any](m map[string]*T, w *Workload, name string) *T {
	if x, ok := m[w.Meta.Namespace+"/"+name]; ok {
		return x
	}
	if w.Meta.Namespace != "" {
		return m["/"+name]
	}
	return m["default/"+name]
}

func key(m Metadata) string { return m.Namespace + "/" + m.Name }

// findPod looks for a pod spec in an object of an unknown kind: a list of mappings called containers, each with an image.
func findPod(n *yaml.Node, path string, depth int) string {
	if depth > 20 || n == nil {
		return ""
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i].Value, n.Content[i+1]
			if k == "containers" && v.Kind == yaml.SequenceNode && len(v.Content) > 0 && child(v.Content[0], "image") != nil &&
				child(v.Content[0], "image").Kind == yaml.ScalarNode {
				return join(path, k)
			}
			if at := findPod(v, join(path, k), depth+1); at != "" {
				return at
			}
		}
	case yaml.SequenceNode:
		for i, v := range n.Content {
			if at := findPod(v, fmt.Sprintf("%s[%d]", path, i), depth+1); at != "" {
				return at
			}
		}
	}
	return ""
}

// resolve follows aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for hops := 0; n != nil && n.Kind == yaml.AliasNode && hops < maxDepth; hops++ {
		n = n.Alias
	}
	return n
}

// child is a member of a mapping, nil if there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n = resolve(n); n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return resolve(n.Content[i+1])
		}
	}
	return nil
}

func text(n *yaml.Node, key string) string {
	if c := child(n, key); c != nil && c.Kind == yaml.ScalarNode && !isNull(c) {
		return c.Value
	}
	return ""
}

func name(n *yaml.Node) string {
	m := child(n, "metadata")
	if x := text(m, "name"); x != "" {
		return x
	}
	return text(m, "generateName")
}
