package policyview

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister/cloister/wire/agent"
)

func container(pg *pager, p *Policy, c *containerData, o PageOptions) {
	pg.line("")
	kind := c.Kind
	if c.Init {
		kind = "init"
	}
	if kind != "" {
		kind = ", " + kind
	}
	pg.line("%s%s", safe(c.title()), safe(kind))
	pg.row("image", imageOf(c)...)
	process := c.OCI.Process
	pg.row("runs", command(process.Args))
	identity := fmt.Sprintf("%d:%d", process.User.UID, process.User.GID)
	if len(process.User.AdditionalGids) > 0 {
		identity += " groups " + numbers(process.User.AdditionalGids)
	}
	identity += " in " + safe(process.Cwd)
	if process.NoNewPrivileges {
		identity += ", no new privileges"
	}
	if c.SharedPID {
		identity += ", sees the processes of the pod"
	}
	pg.row("user", identity)
	if caps := process.Capabilities["Bounding"]; len(caps) > 0 {
		pg.row("may", capabilities(caps))
	}
	pg.row("root", map[bool]string{true: "read-only", false: "writable, kept by the guest"}[c.OCI.Root.Readonly])
	pg.row("variables", variables(process.Env, o.Values))
	if left := optional(process.Env, c.RequiredEnv); left != "" {
		pg.row("optional", left+": the host may leave these variables out")
	}
	if names := atRunTime(process.Env); names != "" {
		pg.row("run time", names+": the host chooses these values, within what the rules allow for such a field")
	}
	var cluster []string
	for _, name := range sorted(c.ClusterValues) {
		cluster = append(cluster, fmt.Sprintf("$(cluster:%s) is any text that fits %s", safe(name), safe(c.ClusterValues[name])))
	}
	pg.row("cluster", cluster...)
	pg.row("mounts", mounts(p, c)...)
	var execs []string
	for _, e := range c.Exec {
		execs = append(execs, command(e))
	}
	pg.row("exec", execs...)
	if c.Signals != nil {
		pg.row("signals", numbers(c.Signals))
	}
	if len(c.Devices) > 0 {
		pg.row("devices", strconv.Itoa(len(c.Devices)))
	}
	if c.Restarts != nil && !*c.Restarts {
		pg.row("restarts", "never")
	}
}

// imageOf says where the root file system comes from and what binds it.
func imageOf(c *containerData) []string {
	var out []string
	for _, s := range c.Storages {
		switch {
		case s.Driver == "erofs-verity-layer":
			out = append(out, layer(s))
		case s.Driver == "image_guest_pull":
			out = append(out, safe(s.Source)+" pulled by the guest")
		}
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
	if len(out) == 0 && c.title() == "(pause)" {
		return []string{"the guest's own pause program"}
	}
	return out
}

// layer says what binds a layer that the host attaches.
func layer(s storageData) string {
	value := func(key string) string {
		for _, o := range s.Options {
			if v, ok := strings.CutPrefix(o, key+"="); ok {
				return safe(v)
			}
		}
		return ""
	}
	text := "layer of the host"
	if n := value("X-kata.partition-number"); n != "" {
		text += ", number " + n
	}
	text += ", bound by verity root " + value("X-kata.dmverity.roothash")
	if at := value("X-kata.dmverity.hashoffset"); at != "" {
		text += " at byte " + at
	}
	if key := value("X-cloister.sealed.key-id"); key != "" {
		text += ", sealed with " + key
	}
	return text
}

// kernelMounts are there in every container and tell nothing.
var kernelMounts = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup"}

// mounts are the places of a container with what is mounted there. Those that are alike share a line.
func mounts(p *Policy, c *containerData) []string {
	var kinds []string
	places := map[string][]string{}
	for _, m := range c.OCI.Mounts {
		if slices.Contains(kernelMounts, m.Type) {
			continue
		}
		kind := mount(p, c, m)
		if places[kind] == nil {
			kinds = append(kinds, kind)
		}
		places[kind] = append(places[kind], safe(m.Destination))
	}
	for i, kind := range kinds {
		kinds[i] = strings.Join(places[kind], " ") + " " + kind
	}
	return kinds
}

// mount says how something is mounted, and what.
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
			return fmt.Sprintf("%s, %d files bound by digest", what, len(f.Entries))
		}
		if f.Free != nil && p.bindsFiles() {
			return fmt.Sprintf("%s, %d files bound by digest, content of %s chosen by the host", what, len(f.Entries), f.open())
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

// optional are the names of variables that a policy knows and does not require.
func optional(env []string, required *[]string) string {
	if required == nil {
		return ""
	}
	var out []string
	for _, v := range env {
		if name, _, _ := strings.Cut(v, "="); !slices.Contains(*required, name) {
			out = append(out, safe(name))
		}
	}
	return strings.Join(out, " ")
}

// capabilities are those of a container, with names for the lists that settings have.
func capabilities(list []string) string {
	out := make([]string, len(list))
	for i, c := range list {
		switch c {
		case "$(default_caps)":
			out[i] = "the usual capabilities"
		case "$(privileged_caps)":
			out[i] = "all capabilities"
		default:
			out[i] = safe(c)
		}
	}
	return strings.Join(out, " ")
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
