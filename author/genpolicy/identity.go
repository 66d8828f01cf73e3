package genpolicy

import (
	"bufio"
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
)

// account is a line of /etc/passwd.
type account struct {
	name     string
	uid, gid uint32
}

// accounts reads /etc/passwd. A file with a line that is none counts as no file, as for the runtime.
func accounts(passwd []byte) []account {
	var out []account
	for _, f := range colonLines(passwd, 7) {
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 != nil || err2 != nil {
			return nil
		}
		out = append(out, account{f[0], uint32(uid), uint32(gid)})
	}
	return out
}

func colonLines(text []byte, fields int) [][]string {
	var out [][]string
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Split(line, ":")
		if len(f) != fields {
			return nil
		}
		out = append(out, f)
	}
	return out
}

// memberships are the groups of /etc/group that list a user.
func memberships(group []byte, name string) []uint32 {
	var out []uint32
	for _, f := range colonLines(group, 4) {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		if err == nil && name != "" && f[0] != name && slices.Contains(strings.Split(f[3], ","), name) {
			out = append(out, uint32(gid))
		}
	}
	return out
}

func groupID(group []byte, name string) (uint32, bool) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), true
	}
	for _, f := range colonLines(group, 4) {
		if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil && f[0] == name {
			return uint32(gid), true
		}
	}
	return 0, false
}

// lookupUser finds a user by number or name. An unknown number has group 0.
func lookupUser(list []account, text string) (account, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	for _, a := range list {
		if a.name == text || err == nil && uint64(a.uid) == n {
			return a, true
		}
	}
	return account{uid: uint32(n)}, err == nil
}

// identity is the user of a container's process: the image's, unless pod or container name one. The group is that of the
// user in the image's passwd unless one is named. Further groups are the image's and the pod's.
func (g *generator) identity(path string, c *kubernetes.Container, img *imagesource.Image) user {
	pod, own := &g.w.Spec.SecurityContext, &c.Security
	list := accounts(img.Passwd)
	var who account
	uid, gid := firstID(own.RunAsUser, pod.RunAsUser), firstID(own.RunAsGroup, pod.RunAsGroup)
	if uid != nil {
		who, _ = lookupUser(list, strconv.FormatInt(*uid, 10))
		who.uid = uint32(*uid)
	} else if text, _, _ := strings.Cut(img.Config.User, ":"); text != "" {
		var ok bool
		if who, ok = lookupUser(list, text); !ok {
			g.fail(c.At, path+".image", "its user %q is not in its /etc/passwd; set securityContext.runAsUser", text)
		}
	} else {
		who, _ = lookupUser(list, "0")
	}
	ids := []*int64{uid, gid, pod.FSGroup}
	for i := range pod.SupplementalGroups {
		ids = append(ids, &pod.SupplementalGroups[i])
	}
	for _, x := range ids {
		if x != nil && (*x < 0 || *x > 1<<31-1) {
			g.fail(own.At, path+".securityContext", "%d is no user or group", *x)
		}
	}
	if nr := first(own.RunAsNonRoot, pod.RunAsNonRoot); nr != nil && *nr && who.uid == 0 {
		g.fail(own.At, path+".securityContext", "runAsNonRoot is set, and the process would run as root; set runAsUser")
	}
	u := user{UID: who.uid, GID: who.gid}
	if gid != nil {
		u.GID = uint32(*gid)
	}
	u.AdditionalGids = []uint32{u.GID}
	add := func(gids ...uint32) {
		for _, x := range gids {
			if !slices.Contains(u.AdditionalGids, x) {
				u.AdditionalGids = append(u.AdditionalGids, x)
			}
		}
	}
	if pod.FSGroup != nil {
		add(uint32(*pod.FSGroup))
	}
	for _, x := range pod.SupplementalGroups {
		add(uint32(x))
	}
	named := slices.Clone(u.AdditionalGids)
	if pod.SupplementalGroupsPolicy != "Strict" {
		add(memberships(img.Group, who.name)...)
	}
	g.checkKnown(path, c, u, uid != nil || u.UID == 0, gid != nil || u.GID == 0, named)
	return u
}

// checkKnown refuses what the node cannot find out when it does not have the image: containerd would leave it out.
func (g *generator) checkKnown(path string, c *kubernetes.Container, u user, uid, gid bool, named []uint32) {
	if !g.s.cluster.GuestPull || g.s.cluster.ImagesOnNode || g.s.HostLayers() {
		return
	}
	var want []string
	if !uid {
		want = append(want, fmt.Sprintf("runAsUser: %d", u.UID))
	}
	if !gid {
		want = append(want, fmt.Sprintf("runAsGroup: %d", u.GID))
	}
	if len(u.AdditionalGids) > len(named) {
		var list []string
		for _, x := range u.AdditionalGids {
			list = append(list, strconv.FormatUint(uint64(x), 10))
		}
		want = append(want, fmt.Sprintf("supplementalGroups: [%s] (of the pod)", strings.Join(list, ", ")))
	}
	if len(want) > 0 {
		g.fail(c.At, path+".securityContext", "the image is pulled in the guest, and the node cannot know its users; write %s", strings.Join(want, ", "))
	}
}

// pauseIdentity is the user of the pause container.
func (g *generator) pauseIdentity(img *imagesource.Image) user {
	pod := &g.w.Spec.SecurityContext
	list := accounts(img.Passwd)
	name, group, hasGroup := strings.Cut(img.Config.User, ":")
	who, _ := lookupUser(list, name)
	u := user{UID: who.uid, GID: who.gid}
	if hasGroup {
		if gid, ok := groupID(img.Group, group); ok {
			u.GID = gid
		}
	}
	if pod.RunAsUser != nil {
		who, _ := lookupUser(list, strconv.FormatInt(*pod.RunAsUser, 10))
		u.UID, u.GID = uint32(*pod.RunAsUser), who.gid
	}
	if pod.RunAsGroup != nil {
		u.GID = uint32(*pod.RunAsGroup)
	}
	u.AdditionalGids = []uint32{u.GID}
	if img.Config.User == "" && pod.RunAsUser == nil && pod.RunAsGroup == nil {
		if pod.FSGroup != nil {
			u.AdditionalGids = append(u.AdditionalGids, uint32(*pod.FSGroup))
		}
		for _, x := range pod.SupplementalGroups {
			u.AdditionalGids = append(u.AdditionalGids, uint32(x))
		}
	}
	return u
}

func firstID(list ...*int64) *int64 {
	for _, x := range list {
		if x != nil {
			return x
		}
	}
	return nil
}
