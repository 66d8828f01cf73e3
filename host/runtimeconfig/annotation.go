package runtimeconfig

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/cloister/cloister/wire/initdata"
)

// Bounds of what a pod says about its runtime. Kubernetes takes 256 KiB of annotations for one pod.
const (
	maxAnnotations = 4096
	maxPolicy      = 192 << 10
)

// notes that are the runtime's own and not a pod's wish.
func isOwnNote(name string) bool { return strings.HasPrefix(name, "io.katacontainers.pkg.oci.") }

// Annotated is the configuration with the wishes of a pod. Annotations of others are not looked at; one of ours or of Kata's that is not
// supported or not enabled, or has a bad value, is an error. Every fault is reported, in the order of names.
func (e *Effective) Annotated(annotations map[string]string) (*Effective, error) {
	if len(annotations) > maxAnnotations {
		return nil, fmt.Errorf("the pod has %d annotations, want at most %d", len(annotations), maxAnnotations)
	}
	a := annotator{effective: *e, base: &e.Config, by: map[string]note{}, all: settings()}
	a.effective.Config = e.Config.clone()
	a.effective.sources = maps.Clone(e.sources)
	if a.effective.sources == nil {
		a.effective.sources = map[string]Source{}
	}
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(name, "io.katacontainers.") && !strings.HasPrefix(name, ShortPrefix) || isOwnNote(name) {
			continue
		}
		if err := a.apply(name, annotations[name]); err != nil {
			a.faults = append(a.faults, fmt.Errorf("annotation %s %w", printName(name), err))
		}
	}
	if err := errors.Join(a.faults...); err != nil {
		return nil, err
	}
	at := func(key string) string { return a.effective.Source(key).String() }
	if err := a.effective.Config.validate(at); err != nil {
		return nil, err
	}
	return &a.effective, nil
}

// printName keeps a name of others to one line.
func printName(name string) string {
	if q := show(name); q != `"`+name+`"` {
		return q
	}
	return name
}

// clone copies what is shared between configurations.
func (c Config) clone() Config {
	c.Storage.VirtiofsdArgs = slices.Clone(c.Storage.VirtiofsdArgs)
	c.Annotations.Enabled = slices.Clone(c.Annotations.Enabled)
	c.Annotations.ValidGuestPaths = slices.Clone(c.Annotations.ValidGuestPaths)
	c.Annotations.ValidVMMPaths = slices.Clone(c.Annotations.ValidVMMPaths)
	c.Annotations.ValidVirtiofsdPaths = slices.Clone(c.Annotations.ValidVirtiofsdPaths)
	return c
}

// note is an annotation that has been applied.
type note struct {
	name, value string
	got         any
}

type annotator struct {
	effective Effective
	base      *Config // says what is enabled: an annotation cannot enable another
	all       []setting
	by        map[string]note // key to annotation
	faults    []error
}

func (a *annotator) apply(name, value string) error {
	switch name {
	case initdata.Annotation, ShortPrefix + keyInitdata:
		return a.initdata(name, value)
	case KataPrefix + "agent.policy", ShortPrefix + keyPolicy:
		return a.policy(name, value)
	case ShortPrefix + keyFragments:
		return a.fragments(name, value)
	}
	if len(value) > maxText {
		return fmt.Errorf("has %d bytes, want at most %d", len(value), maxText)
	}
	s, as := a.find(name)
	if s == nil {
		return fmt.Errorf("is not supported%s (hint: `cloister config annotations` lists those that are)", a.near(name))
	}
	if err := a.enabled(s.key); err != nil {
		return err
	}
	one := a.base.clone() // with this annotation only
	if err := a.assign(s, as, &one, value); err != nil {
		return err
	}
	got := reflect.ValueOf(s.field(&one)).Elem()
	if err := a.claim(s.key, name, value, got.Interface()); err != nil {
		return err
	}
	reflect.ValueOf(s.field(&a.effective.Config)).Elem().Set(got)
	a.effective.sources[s.key] = Source{Kind: KindAnnotation, Name: name}
	return nil
}

// assign puts the value of an annotation into a configuration that is as the node's administrator made it.
func (a *annotator) assign(s *setting, as *conversion, c *Config, value string) error {
	var raw any
	var err error
	if as != nil {
		raw, err = as.text(value)
	} else {
		raw, err = s.parseText(c, value)
	}
	if err != nil {
		return err
	}
	if s.file {
		if err := a.checkPath(s, value); err != nil {
			return err
		}
	}
	if present, ok := s.field(c).(*string); ok && s.add && *present != "" {
		raw = *present + " " + value
	}
	if err := s.assign(c, raw); err != nil {
		return fmt.Errorf("is refused: %w", err)
	}
	return nil
}

// find is the setting that an annotation sets, and how its value is read.
func (a *annotator) find(name string) (*setting, *conversion) {
	for i := range a.all {
		s := &a.all[i]
		if s.short != "" && name == ShortPrefix+s.short {
			return s, nil
		}
		for _, n := range s.notes {
			if name == KataPrefix+n.name {
				return s, n.as
			}
		}
	}
	return nil, nil
}

// enabled lets pods set what the node's administrator allows.
func (a *annotator) enabled(key string) error {
	if !slices.Contains(a.base.Annotations.Enabled, key) {
		return fmt.Errorf("is not enabled on this node: want one for %s (hint: add %q to annotations.enabled, now from %s)",
			strings.Join(a.base.Annotations.Enabled, ", "), key, a.effective.Source("annotations.enabled"))
	}
	return nil
}

// claim allows each key one value. A pod may give several names of it, as long as they mean the same.
func (a *annotator) claim(key, name, value string, got any) error {
	if other, taken := a.by[key]; taken && !reflect.DeepEqual(other.got, got) {
		return fmt.Errorf("is %s, but %s is %s: want the same, or one of them", show(value), other.name, show(other.value))
	}
	a.by[key] = note{name, value, got}
	return nil
}

// checkPath lets a pod name a file that the node's administrator has allowed, also after symbolic links.
func (a *annotator) checkPath(s *setting, value string) error {
	globs := s.globs
	var allowed []string
	if globs != nil {
		allowed = globs(a.base)
	}
	matches := func(p string) bool {
		return slices.ContainsFunc(allowed, func(g string) bool {
			ok, err := filepath.Match(g, p)
			return err == nil && ok
		})
	}
	if !filepath.IsAbs(value) || filepath.Clean(value) != value {
		return fmt.Errorf("is %s, want an absolute path without \"..\" and doubled slashes", show(value))
	}
	if !matches(value) {
		return fmt.Errorf("is %s, want a path that the node allows: %s", show(value), orNone(allowed))
	}
	real, err := filepath.EvalSymlinks(value)
	if err != nil {
		return fmt.Errorf("is %s, want a file that is there", show(value))
	}
	if !matches(real) {
		return fmt.Errorf("is %s, which leads to %s, want a path that the node allows: %s", show(value), show(real), orNone(allowed))
	}
	return nil
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none are"
	}
	return strings.Join(list, ", ")
}

func (a *annotator) initdata(name, value string) error {
	if err := a.enabled(keyInitdata); err != nil {
		return err
	}
	const help = "(hint: its value is what `cloister initdata new --annotation` prints)"
	text, err := initdata.DecodeAnnotation(value)
	if err != nil {
		return fmt.Errorf("is not initdata: %w %s", err, help)
	}
	if _, err := initdata.Parse(text); err != nil {
		return fmt.Errorf("is not initdata: %w %s", err, help)
	}
	if err := a.claim(keyInitdata, name, value, string(text)); err != nil {
		return err
	}
	a.effective.Initdata = text
	a.effective.sources[keyInitdata] = Source{Kind: KindAnnotation, Name: name}
	return nil
}

func (a *annotator) policy(name, value string) error {
	if err := a.enabled(keyPolicy); err != nil {
		return err
	}
	if len(value) > maxPolicy {
		return fmt.Errorf("has %d bytes, want at most %d", len(value), maxPolicy)
	}
	text, err := base64.StdEncoding.Strict().DecodeString(value)
	if err != nil || len(text) == 0 {
		return fmt.Errorf("is %s, want a policy in base64", show(value))
	}
	if err := a.claim(keyPolicy, name, value, string(text)); err != nil {
		return err
	}
	a.effective.Policy = text
	a.effective.sources[keyPolicy] = Source{Kind: KindAnnotation, Name: name}
	return nil
}

// maxFragments bounds how many signed fragments a pod can bring.
const maxFragments = 32

func (a *annotator) fragments(name, value string) error {
	if err := a.enabled(keyFragments); err != nil {
		return err
	}
	if len(value) > maxPolicy {
		return fmt.Errorf("has %d bytes, want at most %d", len(value), maxPolicy)
	}
	if n := 1 + strings.Count(value, ","); n > maxFragments {
		return fmt.Errorf("has %d fragments, want at most %d", n, maxFragments)
	}
	var list [][]byte
	for part := range strings.SplitSeq(value, ",") {
		raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(part))
		if err != nil || len(raw) == 0 {
			return fmt.Errorf("is %s, want signed policy fragments in base64, with commas between them", show(value))
		}
		list = append(list, raw)
	}
	if err := a.claim(keyFragments, name, value, value); err != nil {
		return err
	}
	a.effective.Fragments = list
	a.effective.sources[keyFragments] = Source{Kind: KindAnnotation, Name: name}
	return nil
}

// Annotation describes one that pods can set.
type Annotation struct {
	Name string `json:"name"`
	// Key is the setting, Enabled whether this configuration lets pods set it.
	Key     string `json:"key"`
	Enabled bool   `json:"enabled"`
}

// Supported lists every annotation there is, with its state in this configuration.
func (c *Config) Supported() []Annotation {
	var out []Annotation
	put := func(key, name string) {
		out = append(out, Annotation{Name: name, Key: key, Enabled: slices.Contains(c.Annotations.Enabled, key)})
	}
	put(keyInitdata, ShortPrefix+keyInitdata)
	put(keyInitdata, initdata.Annotation)
	put(keyPolicy, ShortPrefix+keyPolicy)
	put(keyPolicy, KataPrefix+"agent.policy")
	put(keyFragments, ShortPrefix+keyFragments)
	for _, s := range settings() {
		if s.short != "" {
			put(s.key, ShortPrefix+s.short)
		}
		for _, n := range s.notes {
			put(s.key, KataPrefix+n.name)
		}
	}
	return out
}
