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
	// Kinds are the only ones that objects may have. Empty: any; objects that make no pods are read over.
	Kinds []string
	// Fields judges the fields of pods, such as spec.containers[].image, by what the pods are for: a field that is set and refused
	// is a problem, an ignored one a warning, each with the reason given. nil, or two empty texts: the field is taken.
	Fields func(path string) (refused, ignored string)
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

// Problem is a problem at a place of this workload. at is below the pod's spec; n, which may be nil, is the object that has it. The line
// is that of the last part of at that is there.
func (w *Workload) Problem(n *yaml.Node, at, format string, args ...any) Problem {
	p := problem(w.File, 0, w.Object(), w.Path, format, args...)
	if n == nil {
		n = w.Spec.Node
	}
	if n != nil {
		p.Line = n.Line
	}
	if at != "" {
		p.Path += "." + at
		p.Line = max(p.Line, lineOf(w.pod, "spec."+at))
	}
	return p
}

// Fault is a problem at a path below the pod, such as spec.containers[0].image. Its line is that of the last part of it that is there.
func (w *Workload) Fault(path, format string, args ...any) Problem {
	return problem(w.File, lineOf(w.pod, path), w.Object(), strings.TrimSuffix(w.Path, "spec")+path, format, args...)
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
	Passed   []string
	Warnings []string // about ignored fields

	configMaps map[string]*ConfigMap // by namespace/name
	secrets    map[string]*Secret
	claims     map[string]*Claim
	tokens     map[string]*bool // of ServiceAccounts: automountServiceAccountToken, for those that say so
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
	s := &Set{opts: opts, configMaps: map[string]*ConfigMap{}, secrets: map[string]*Secret{}, claims: map[string]*Claim{}, tokens: map[string]*bool{}}
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
		s.problems = append(s.problems, problem(f.Name, n.Line, "", path, format, args...))
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
	case len(s.opts.Kinds) > 0 && !slices.Contains(s.opts.Kinds, kind):
		fail(where+"kind", "%q is not supported; expected %s", kind, oneOf(s.opts.Kinds))
	case len(s.opts.Kinds) > 0 && (kind == "ConfigMap" || kind == "Secret") && version != "v1":
		fail(where+"apiVersion", "got %q, expected v1", version)
	case kind == "ConfigMap" && version == "v1":
		s.addConfigMap(f, n)
	case kind == "Secret" && version == "v1":
		s.addSecret(f, n)
	case kind == "PersistentVolumeClaim" && version == "v1":
		c := &Claim{}
		s.decode(f, n, "PersistentVolumeClaim/"+name(n), where, reflect.ValueOf(c).Elem())
		s.claims[key(c.Metadata)] = c
	case kind == "ServiceAccount" && version == "v1":
		s.addServiceAccount(n)
	case dataOnly:
	case isPod && ofGroup(kind, version):
		s.addWorkload(f, n, kind, at)
	case isPod && (len(s.opts.Kinds) > 0 || !strings.Contains(version, ".")) || kind == "PodTemplate":
		fail(where+"apiVersion", "%s of %q is not supported, expected %s", kind, version, oneOf(podGroups[kind]))
	default:
		if at := findPod(n, "", 0); at != "" {
			fail(where+at, "kind %s of %s has containers, and how it makes pods of them is not known; give what its controller makes", kind, version)
		}
	}
}

// oneOf is a list for messages, "a, b or c".
func oneOf(list []string) string {
	if len(list) < 2 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:len(list)-1], ", ") + " or " + list[len(list)-1]
}

func ofGroup(kind, version string) bool {
	return slices.ContainsFunc(podGroups[kind], func(g string) bool {
		return version == g || strings.HasSuffix(g, "/") && strings.HasPrefix(version, g)
	})
}

func (s *Set) decode(f *File, n *yaml.Node, object, where string, v reflect.Value) {
	s.decodeFields(f, n, object, where, v, nil)
}

func (s *Set) decodeFields(f *File, n *yaml.Node, object, where string, v reflect.Value, pod *podFields) {
	d := decoder{file: f.Name, object: object, problems: &s.problems, lenient: s.opts.IgnoreUnknown, pod: pod}
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
			s.problems = append(s.problems, problem(f.Name, n.Line, object, path+step, "missing"))
			return
		}
		path += step + "."
		w.steps = append(w.steps, step)
	}
	spec := child(pod, "spec")
	if spec == nil {
		s.problems = append(s.problems, problem(f.Name, pod.Line, object, path+"spec", "missing"))
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
	if pod == n {
		s.decode(f, n, object, item, reflect.ValueOf(&podObject{}).Elem())
	} else {
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
	s.decodeFields(f, spec, object, w.Path, reflect.ValueOf(&w.Spec).Elem(), &podFields{s.opts.Fields, path, &s.Warnings})
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
	s.wantName(f, n, object, c.Metadata)
	c.BinaryData = s.binary(f, n, object, "binaryData", c.BinaryData)
	for k := range c.BinaryData {
		if _, ok := c.Data[k]; ok {
			path := join("binaryData", k)
			s.problems = append(s.problems, problem(f.Name, lineOf(n, path), object, path, "the key is also in data"))
		}
	}
	if old, ok := s.configMaps[key(c.Metadata)]; ok && (!maps.Equal(old.Data, c.Data) || !maps.Equal(old.BinaryData, c.BinaryData)) {
		s.problems = append(s.problems, problem(f.Name, n.Line, object, "metadata.name", "given twice, with different content"))
	}
	s.configMaps[key(c.Metadata)] = c
}

func (s *Set) addSecret(f *File, n *yaml.Node) {
	c := &Secret{}
	object := "Secret/" + name(n)
	s.decode(f, n, object, "", reflect.ValueOf(c).Elem())
	s.wantName(f, n, object, c.Metadata)
	c.Data = s.binary(f, n, object, "data", c.Data)
	for k, v := range c.StringData { // stringData wins, as in Kubernetes
		c.Data[k] = v
	}
	if old, ok := s.secrets[key(c.Metadata)]; ok && !maps.Equal(old.Data, c.Data) {
		s.problems = append(s.problems, problem(f.Name, n.Line, object, "metadata.name", "given twice, with different content"))
	}
	s.secrets[key(c.Metadata)] = c
}

func (s *Set) wantName(f *File, n *yaml.Node, object string, m Metadata) {
	if m.Name == "" && m.GenerateName == "" {
		s.problems = append(s.problems, problem(f.Name, lineOf(n, "metadata"), object, "metadata.name", "missing"))
	}
}

// binary decodes base64 values. They stay out of messages.
func (s *Set) binary(f *File, n *yaml.Node, object, field string, values map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range values {
		raw, err := base64.StdEncoding.DecodeString(strings.NewReplacer("\n", "", "\r", "", " ", "").Replace(v))
		if err != nil {
			path := join(field, k)
			s.problems = append(s.problems, problem(f.Name, lineOf(n, path), object, path, "not base64"))
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
