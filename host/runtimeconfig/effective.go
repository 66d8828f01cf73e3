package runtimeconfig

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"time"
)

// Kinds of Source.
const (
	KindDefault    = "default"
	KindFile       = "file"
	KindDropIn     = "drop-in"
	KindOptions    = "options" // config_body of the create request
	KindAnnotation = "annotation"
)

// Source is where a value came from.
type Source struct {
	Kind string `json:"kind"`
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	// Name is the key of a Kata file, or the annotation.
	Name string `json:"name,omitempty"`
}

// String is the source as people read it: default, FILE:LINE, drop-in FILE:LINE, annotation NAME.
func (s Source) String() string {
	switch s.Kind {
	case KindFile:
		return fmt.Sprintf("%s:%d", s.File, s.Line)
	case KindDropIn:
		return fmt.Sprintf("drop-in %s:%d", s.File, s.Line)
	case KindOptions:
		return fmt.Sprintf("config_body:%d", s.Line)
	case KindAnnotation:
		return "annotation " + s.Name
	}
	return KindDefault
}

// Value is one setting and where it came from.
type Value struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source Source `json:"source"`
}

// Effective is a configuration with its history.
type Effective struct {
	Config Config
	// Files were read, in this order; none means that the defaults hold.
	Files []string
	// Ignored are keys of Kata, and options of other runtimes, that have no effect.
	Ignored []Ignored
	// Initdata is the text that the pod brought, Policy its policy for guests that take one from the host.
	Initdata, Policy []byte
	// Fragments are signed parts of policies that the pod brought. The guest checks them.
	Fragments [][]byte

	sources map[string]Source
}

// Values lists every setting in the order of the example.
func (e *Effective) Values() []Value {
	var out []Value
	for _, s := range settings() {
		v := reflect.ValueOf(s.field(&e.Config)).Elem().Interface()
		switch x := v.(type) {
		case time.Duration:
			v = x.String()
		case []string:
			if x == nil {
				v = []string{}
			}
		}
		out = append(out, Value{Key: s.key, Value: v, Source: e.Source(s.key)})
	}
	return out
}

// Source is where the value of a key came from.
func (e *Effective) Source(key string) Source {
	if s, ok := e.sources[key]; ok {
		return s
	}
	return Source{Kind: KindDefault}
}

// builder makes a configuration out of keys.
type builder struct {
	c       Config
	all     []setting
	sources map[string]Source
	own     map[string]bool // set by a file of our own
	faults  []error
}

func newBuilder() *builder {
	return &builder{c: Default(), all: settings(), sources: map[string]Source{}, own: map[string]bool{}}
}

func (b *builder) fault(err error)      { b.faults = append(b.faults, err) }
func (b *builder) at(key string) string { return b.sources[key].String() }

func (b *builder) byKey(key string) *setting {
	i := slices.IndexFunc(b.all, func(s setting) bool { return s.key == key })
	if i < 0 {
		return nil
	}
	return &b.all[i]
}

// foreign finds the setting that a key of Kata stands for.
func (b *builder) foreign(name string) (*setting, foreign) {
	for i := range b.all {
		for _, f := range b.all[i].kata {
			if f.name == name {
				return &b.all[i], f
			}
		}
	}
	return nil, foreign{}
}

func (b *builder) set(s *setting, value any, src Source) {
	if err := s.assign(&b.c, value); err != nil {
		b.fault(fmt.Errorf("%s: %w", src, err))
		return
	}
	b.sources[s.key] = src
}

// build applies the keys of files: Kata's in their order, then ours, which override them.
func build(leaves []leaf, files []string) (*Effective, error) {
	b := newBuilder()
	var theirs, ours []leaf
	mixed := map[string]leaf{} // first key of each file
	for _, l := range leaves {
		if first, there := mixed[l.src.File]; !there {
			mixed[l.src.File] = l
		} else if isKata(first) != isKata(l) {
			b.fault(fmt.Errorf("%s: key %s beside %s: want a file of Cloister's keys or one of Kata's, not both", l.src, show(l.name()),
				show(first.name())))
			continue
		}
		if isKata(l) {
			theirs = append(theirs, l)
		} else {
			ours = append(ours, l)
		}
	}
	for _, l := range ours {
		b.own[l.name()] = true
	}
	k, err := readKata(theirs)
	if err != nil {
		return nil, err
	}
	// Kata's keys come first: what a file of our own says is what this node's administrator added.
	k.apply(b)
	for _, l := range ours {
		s := b.byKey(l.name())
		if s == nil {
			b.fault(fmt.Errorf("%s: unknown key %s%s", l.src, show(l.name()), b.near(l.name())))
			continue
		}
		if text, ok := l.value.(string); ok && s.file && text != "" && !filepath.IsAbs(text) && filepath.IsAbs(l.src.File) {
			l.value = filepath.Join(filepath.Dir(l.src.File), text)
		}
		b.set(s, l.value, l.src)
	}
	k.confirm(b)
	if err := errors.Join(b.faults...); err != nil {
		return nil, err
	}
	if err := errors.Join(b.c.validate(b.at), k.refuse(&b.c)); err != nil {
		return nil, err
	}
	return &Effective{Config: b.c, Files: files, Ignored: k.ignored, sources: b.sources}, nil
}
