package genpolicy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
)

func itoa(i int) string { return strconv.Itoa(i) }

// config is a mount of a volume whose files the kubelet writes.
func (m *mounts) config(where string, vm *kubernetes.VolumeMount, v *kubernetes.Volume, destination string) {
	t := m.g.s.Volumes["configMap"]
	base := path.Base(destination)
	m.set(mount{Destination: destination, Type: t.MountType, Source: t.MountSource + regexp.QuoteMeta(base) + "$", Options: t.Options})
	if m.g.s.Kata.ConfigMapStorage {
		m.storages = append(m.storages, t.storage(t.MountPoint+regexp.QuoteMeta(base)+"$"))
	}
	f := fileMount{Destination: destination, Base: base, Volume: v.Name, Bound: true, Entries: map[string]fileEntry{}}
	c := &contents{m: m, vm: vm, where: where, out: &f}
	switch {
	case v.ConfigMap != nil:
		f.Kind = "configMap"
		c.configMap(v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional)
	case v.Secret != nil:
		f.Kind = "secret"
		c.secret(v.Secret.Name, v.Secret.Items, v.Secret.Optional)
	case v.Downward != nil:
		f.Kind, f.Bound = "downwardAPI", false
	default:
		f.Kind = "projected"
		for _, s := range v.Projected.Sources {
			switch {
			case s.ConfigMap != nil:
				c.configMap(s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
			case s.Secret != nil:
				c.secret(s.Secret.Name, s.Secret.Items, s.Secret.Optional)
			default:
				c.made(&s)
			}
		}
	}
	if vm.SubPathExpr != "" {
		f.Bound, f.Entries = false, map[string]fileEntry{}
	} else if vm.SubPath != "" {
		c.subPath(path.Clean(vm.SubPath))
	}
	switch known := len(f.Entries) > 0; {
	case f.Bound, !known:
	case !c.any && len(c.free) == 0: // later sources have replaced all that was not known
		f.Bound = true
	default:
		f.Free = &freeFiles{Any: c.any, Paths: append([]string{}, slices.Sorted(maps.Keys(c.free))...)}
	}
	m.files = append(m.files, f)
}

// contents gathers the files of a volume. The sources of a projected volume come one after the other: a later one's file replaces an
// earlier one's at the same path, as the kubelet has it.
type contents struct {
	m     *mounts
	vm    *kubernetes.VolumeMount
	where string
	out   *fileMount
	free  map[string]bool // paths of files with unknown content
	any   bool            // such files can be anywhere
}

// known puts a file whose content is known.
func (c *contents) known(at string, e fileEntry) {
	c.out.Entries[at] = e
	delete(c.free, at)
}

// unknown says where the files of a source are of which no more is known; without paths, they can be anywhere.
func (c *contents) unknown(what string, paths []string) {
	c.out.Bound = false
	if len(paths) == 0 {
		c.any = true
	}
	for _, p := range paths {
		p = c.place(p)
		if _, ok := c.out.Entries[p]; ok {
			c.m.g.fail(c.vm.At, c.where, "%s, whose content is not known, replaces the file %q of a source before it; give it another path", what, p)
			continue
		}
		if c.free == nil {
			c.free = map[string]bool{}
		}
		c.free[p] = true
	}
}

// place is the path of a file below the volume. Kubernetes refuses other ones.
func (c *contents) place(p string) string {
	if clean := path.Clean(p); p == "" || clean == "." || path.IsAbs(p) || slices.Contains(strings.Split(p, "/"), "..") {
		c.m.g.fail(c.vm.At, c.where, "a source's path %q leads out of the volume, or names no file", p)
	}
	return path.Clean(p)
}

// made is a source that the cluster makes: a token, fields of the pod, certificates.
func (c *contents) made(s *kubernetes.Source) {
	switch {
	case s.Token != nil:
		c.unknown("a token", s.Token.Paths())
	case s.Downward != nil:
		c.unknown("the downward API", s.Downward.Paths())
	case s.Trust != nil:
		c.unknown("a trust bundle", s.Trust.Paths())
	case s.PodCert != nil:
		c.unknown("a certificate", s.PodCert.Paths())
	default:
		c.unknown("a source", nil)
	}
}

func (c *contents) configMap(name string, items []kubernetes.Item, optional bool) {
	data, binary, ok := c.m.g.set.ConfigMap(c.m.g.w, name)
	all := maps.Clone(binary)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, data)
	c.add("ConfigMap", name, all, ok, items, optional)
}

func (c *contents) secret(name string, items []kubernetes.Item, optional bool) {
	data, ok := c.m.g.set.Secret(c.m.g.w, name)
	c.add("Secret", name, data, ok, items, optional)
}

func (c *contents) add(kind, name string, data map[string]string, known bool, items []kubernetes.Item, optional bool) {
	if !known {
		var paths []string
		for _, it := range items {
			paths = append(paths, it.Path)
		}
		c.unknown(fmt.Sprintf("%s %q", kind, name), paths)
		if !optional {
			c.m.g.warn(c.vm.At, c.where, "the content of %s %q is not known, so the host may choose it; give it by --config-file", kind, name)
		}
		return
	}
	if len(items) == 0 {
		for _, k := range slices.Sorted(maps.Keys(data)) {
			c.known(k, entry(data[k]))
		}
		return
	}
	for _, it := range items {
		value, ok := data[it.Key]
		if !ok {
			if !optional {
				c.m.g.fail(c.vm.At, c.where, "%s %q has no key %q", kind, name, it.Key)
			}
			continue
		}
		c.known(c.place(it.Path), entry(value))
	}
}

// subPath keeps the file or directory of the volume that is mounted.
func (c *contents) subPath(sub string) {
	if e, ok := c.out.Entries[sub]; ok {
		c.out.Single, c.out.Bound, c.out.Entries = true, true, map[string]fileEntry{"": e}
		return
	}
	if c.free[sub] {
		c.out.Single, c.out.Entries = true, map[string]fileEntry{}
		return
	}
	below, free := map[string]fileEntry{}, map[string]bool{}
	for k, e := range c.out.Entries {
		if rest, ok := strings.CutPrefix(k, sub+"/"); ok {
			below[rest] = e
		}
	}
	for k := range c.free {
		if rest, ok := strings.CutPrefix(k, sub+"/"); ok {
			free[rest] = true
		}
	}
	// A volume without a file of known content may be anything: a downward API volume, or a ConfigMap that was not given.
	if known := c.out.Bound || len(c.out.Entries) > 0 && !c.any; known && len(free) == 0 {
		if c.out.Bound = true; len(below) == 0 {
			c.m.g.fail(c.vm.At, c.where+".subPath", "the volume has no %q", sub)
		}
	}
	c.out.Entries, c.free = below, free
}

func entry(content string) fileEntry {
	sum := sha256.Sum256([]byte(content))
	return fileEntry{SHA256: hex.EncodeToString(sum[:]), Size: len(content)}
}
