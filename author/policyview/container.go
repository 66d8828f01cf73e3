package policyview

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cloister/cloister/wire/agent"
)

// containers prints what most containers have in common, once, and then what each has for itself.
func (p *Policy) containers(pg *pager, o PageOptions) {
	var all []facts
	for i := range p.data.Containers {
		if c := &p.data.Containers[i]; c.title() != pauseTitle {
			all = append(all, p.factsOf(c, o))
		}
	}
	common := shared(all)
	if len(common.names) > 0 {
		pg.line("")
		pg.line("All containers, where they do not say otherwise")
		common.print(pg)
	}
	for i := range p.data.Containers {
		c := &p.data.Containers[i]
		kind := c.Kind
		if c.Init {
			kind = "init"
		}
		if kind != "" {
			kind = ", " + kind
		}
		pg.line("")
		pg.line("%s%s", safe(c.title()), safe(kind))
		f := p.factsOf(c, o)
		if c.title() != pauseTitle {
			f = f.differ(&common)
		}
		f.print(pg)
	}
}

// imageOf says where the root file system comes from and what binds it. Without full the layers are one line.
func imageOf(c *containerData, full bool) []string {
	var out, roots []string
	for _, s := range c.Storages {
		switch {
		case s.Driver == "erofs-verity-layer" && full:
			out = append(out, layer(s))
		case s.Driver == "erofs-verity-layer":
			root := option(s, "X-kata.dmverity.roothash")
			if len(root) > shortRoot {
				root = root[:shortRoot] + "…"
			}
			if option(s, "X-cloister.sealed.key-id") != "" {
				root += " (sealed)"
			}
			roots = append(roots, root)
		case s.Driver == "image_guest_pull":
			out = append(out, safe(s.Source)+" pulled by the guest")
		}
	}
	if len(roots) > 0 {
		what := fmt.Sprintf("%d layers of the host, by verity root:", len(roots))
		if len(roots) == 1 {
			what = "a layer of the host, by verity root:"
		}
		out = append(out, wrapped(append([]string{what}, roots...))...)
	}
	if i := c.Image; i != nil {
		how := "bound by digest " + safe(i.Digest)
		switch {
		case i.ByTag:
			how = "by tag: whoever answers for the registry chooses the content"
		case i.Digest != "" && strings.HasSuffix(i.Reference, "@"+i.Digest):
			how = "bound by this digest"
		}
		return append([]string{safe(i.Reference) + ", " + how}, out...)
	}
	if name := c.OCI.Annotations["io.kubernetes.cri.image-name"]; name != "" {
		return append([]string{safe(name)}, out...)
	}
	if len(out) == 0 && c.title() == pauseTitle {
		return []string{"the guest's own pause program"}
	}
	return out
}

// shortRoot is how much of a root hash tells it from others, for a person.
const shortRoot = 12

func option(s storageData, key string) string {
	for _, o := range s.Options {
		if v, ok := strings.CutPrefix(o, key+"="); ok {
			return safe(v)
		}
	}
	return ""
}

// layer says what binds a layer that the host attaches.
func layer(s storageData) string {
	text := "layer of the host"
	if n := option(s, "X-kata.partition-number"); n != "" {
		text += ", number " + n
	}
	text += ", bound by verity root " + option(s, "X-kata.dmverity.roothash")
	if at := option(s, "X-kata.dmverity.hashoffset"); at != "" {
		text += " at byte " + at
	}
	if key := option(s, "X-cloister.sealed.key-id"); key != "" {
		text += ", sealed with " + key
	}
	return text
}

// kernelMounts are there in every container and tell nothing.
var kernelMounts = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup"}

func mount(p *Policy, c *containerData, m mountData) string {
	how := "read-write"
	if slices.Contains(m.Options, "ro") {
		how = "read-only"
	}
	if c.RequiredMounts != nil && !slices.Contains(*c.RequiredMounts, m.Destination) {
		how += ", may be left out"
	}
	return how + ", " + origin(p, c, m)
}

// disk says on what disk of the host a mount is.
func disk(c *containerData, m mountData) string {
	text := "disk of the host"
	if m.Volume != "" {
		text += " for the volume " + safe(m.Volume) + " alone"
	}
	if m.Source != "" {
		text = "directory of the " + text
	}
	for _, s := range c.Storages {
		if s.Volume == m.Volume && slices.Contains(s.DriverOptions, "encryption_key=ephemeral") {
			return text + ", encrypted with a key made in the guest"
		}
	}
	return text + ", not encrypted"
}

func origin(p *Policy, c *containerData, m mountData) string {
	for _, f := range c.Files {
		if f.Destination != m.Destination {
			continue
		}
		what := strings.TrimSpace(safe(f.Kind) + " " + safe(f.Volume))
		if f.Kind == "runtime" {
			what = "of the node"
		}
		if f.Bound && p.bindsFiles() {
			return fmt.Sprintf("%s, %s bound by digest", what, some(len(f.Entries), "file"))
		}
		if f.Free != nil && p.bindsFiles() {
			return fmt.Sprintf("%s, %s bound by digest, content of %s chosen by the host", what, some(len(f.Entries), "file"), f.open())
		}
		return what + ", content chosen by the host"
	}
	switch {
	case m.Source == "", m.Volume != "":
		return disk(c, m)
	case strings.Contains(m.Source, "/sandbox/ephemeral/") || strings.Contains(m.Source, "/sandbox/shm"):
		return "memory of the guest"
	case strings.Contains(m.Source, agent.ImageVolumePattern):
		return "volume of the image, made in the guest for each container with what the image has there"
	case strings.Contains(m.Source, "/$(sandbox-id)/rootfs/local/"):
		return "kept by the guest"
	case strings.HasPrefix(m.Source, "^$(cpath)/sandbox-"):
		return "shared directory, content chosen by the host"
	case strings.HasPrefix(m.Source, "$(sfprefix)"):
		return "content chosen by the host"
	}
	return safe(m.Source)
}

// onDisks counts the mounts of disks for which the policy names no volume.
func onDisks(c *containerData) int {
	n := 0
	for _, m := range c.OCI.Mounts {
		if m.Source == "" && m.Volume == "" && m.Type == "bind" {
			n++
		}
	}
	return n
}

// runTime are texts that stand for what is known when the pod runs. Name and namespace of the pod are not among them: the policy pins them.
var runTime = regexp.MustCompile(`\$\((host-name|node-name|pod-uid|pod-ip|host-ip|resource-field|todo-annotation)\)`)

// atRunTime are the names of variables whose value the policy leaves open in part.
func atRunTime(env []string) string {
	var out []string
	for _, v := range env {
		if name, value, _ := strings.Cut(v, "="); runTime.MatchString(value) {
			out = append(out, safe(name))
		}
	}
	return strings.Join(out, " ")
}

// open names the files that are not bound in a volume of which others are.
func (f *fileData) open() string {
	if f.Free.Any {
		return "all others"
	}
	return safe(strings.Join(f.Free.Paths, " "))
}
