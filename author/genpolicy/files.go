package genpolicy

import (
	"crypto/sha256"
	"encoding/hex"
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
				f.Bound = false // tokens and fields of the pod are made anew
			}
		}
	}
	if vm.SubPathExpr != "" {
		f.Bound, f.Entries = false, map[string]fileEntry{}
	} else if vm.SubPath != "" {
		c.subPath(path.Clean(vm.SubPath))
	}
	m.files = append(m.files, f)
}

// contents gathers the files of a volume.
type contents struct {
	m     *mounts
	vm    *kubernetes.VolumeMount
	where string
	out   *fileMount
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
		c.out.Bound = false
		if !optional {
			c.m.g.warn(c.vm.At, c.where, "the content of %s %q is not known, so the host may choose it; give it by --config-file", kind, name)
		}
		return
	}
	if len(items) == 0 {
		for _, k := range slices.Sorted(maps.Keys(data)) {
			c.out.Entries[k] = entry(data[k])
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
		c.out.Entries[path.Clean(it.Path)] = entry(value)
	}
}

// subPath keeps the file or directory of the volume that is mounted.
func (c *contents) subPath(sub string) {
	if e, ok := c.out.Entries[sub]; ok {
		c.out.Single, c.out.Entries = true, map[string]fileEntry{"": e}
		return
	}
	below := map[string]fileEntry{}
	for k, e := range c.out.Entries {
		if rest, ok := strings.CutPrefix(k, sub+"/"); ok {
			below[rest] = e
		}
	}
	if len(below) == 0 && c.out.Bound {
		c.m.g.fail(c.vm.At, c.where+".subPath", "the volume has no %q", sub)
	}
	c.out.Entries = below
}

func entry(content string) fileEntry {
	sum := sha256.Sum256([]byte(content))
	return fileEntry{SHA256: hex.EncodeToString(sum[:]), Size: len(content)}
}
