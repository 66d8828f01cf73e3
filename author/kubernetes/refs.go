package kubernetes

import "maps"

// Reference is a ConfigMap or Secret as a pod names it, with what it holds.
type Reference struct {
	Kind     string // ConfigMap or Secret
	Name     string
	Optional bool
	Known    bool              // it was read
	Data     map[string]string // what can be in the environment; of a Secret stringData wins
	Binary   map[string]string // what of a ConfigMap is only for files
}

// Files are all keys that a volume shows.
func (r *Reference) Files() map[string]string {
	if len(r.Binary) == 0 {
		return r.Data
	}
	out := maps.Clone(r.Binary)
	maps.Copy(out, r.Data)
	return out
}

func (s *Set) reference(w *Workload, kind, name string, optional bool) *Reference {
	r := &Reference{Kind: kind, Name: name, Optional: optional}
	if kind == "Secret" {
		r.Data, r.Known = s.Secret(w, name)
	} else {
		r.Data, r.Binary, r.Known = s.ConfigMap(w, name)
	}
	return r
}

// AllOf is what e takes its variables from; nil if it names neither a ConfigMap nor a Secret, or both.
func (s *Set) AllOf(w *Workload, e *EnvFrom) *Reference {
	switch {
	case (e.ConfigMap == nil) == (e.Secret == nil):
		return nil
	case e.ConfigMap != nil:
		return s.reference(w, "ConfigMap", e.ConfigMap.Name, e.ConfigMap.Optional)
	}
	return s.reference(w, "Secret", e.Secret.Name, e.Secret.Optional)
}

// KeyOf is what v takes its value from, and the key; nil if it names neither a ConfigMap nor a Secret.
func (s *Set) KeyOf(w *Workload, v *EnvValue) (r *Reference, key string) {
	switch {
	case v == nil:
		return nil, ""
	case v.ConfigMap != nil:
		return s.reference(w, "ConfigMap", v.ConfigMap.Name, v.ConfigMap.Optional), v.ConfigMap.Key
	case v.Secret != nil:
		return s.reference(w, "Secret", v.Secret.Name, v.Secret.Optional), v.Secret.Key
	}
	return nil, ""
}

// FilesOf is what the volume v shows, with the keys and modes that it asks for; nil if it is of another kind.
func (s *Set) FilesOf(w *Workload, v *Volume) (r *Reference, items []Item, mode *int64) {
	switch {
	case v.ConfigMap != nil:
		return s.reference(w, "ConfigMap", v.ConfigMap.Name, v.ConfigMap.Optional), v.ConfigMap.Items, v.ConfigMap.DefaultMode
	case v.Secret != nil:
		return s.reference(w, "Secret", v.Secret.Name, v.Secret.Optional), v.Secret.Items, v.Secret.DefaultMode
	}
	return nil, nil, nil
}
