package manifest

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
)

// ImageConfig is what an image says about its process.
type ImageConfig struct {
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkingDir string
	StopSignal string
}

// Image is a resolved image.
type Image struct {
	// Ref names the image by digest as the guest will ask for it.
	Ref    string
	Config ImageConfig
}

// ImageResolver finds the digest and configuration of an image.
type ImageResolver interface {
	Resolve(ctx context.Context, ref string) (Image, error)
}

// identity is the numeric user of a process.
type identity struct {
	uid, gid uint32
	groups   []uint32
}

// resolveIdentity applies image user, pod and container security context, the
// later ones winning. Names need the image's /etc/passwd, which only the guest
// sees; they are refused with advice.
func resolveIdentity(pod kubernetes.PodSecurity, sc kubernetes.Security, imageUser string) (identity, error) {
	var id identity
	uid, gid := cmp.Or(sc.RunAsUser, pod.RunAsUser), cmp.Or(sc.RunAsGroup, pod.RunAsGroup)
	if uid != nil {
		id.uid = uint32(*uid)
	} else {
		u, g, err := parseUser(imageUser)
		if err != nil {
			return id, err
		}
		id.uid, id.gid = u, g
	}
	if gid != nil {
		id.gid = uint32(*gid)
	}
	if nr := cmp.Or(sc.RunAsNonRoot, pod.RunAsNonRoot); nr != nil && *nr && id.uid == 0 {
		return id, fmt.Errorf("runAsNonRoot is set but the process would run as root; set securityContext.runAsUser")
	}
	add := func(g uint32) {
		for _, have := range id.groups {
			if have == g {
				return
			}
		}
		id.groups = append(id.groups, g)
	}
	add(id.gid)
	if pod.FSGroup != nil {
		add(uint32(*pod.FSGroup))
	}
	for _, g := range pod.SupplementalGroups {
		add(uint32(g))
	}
	return id, nil
}

// parseUser reads the USER of an image: empty, uid or uid:gid; root is known.
func parseUser(s string) (uid, gid uint32, err error) {
	if s == "" {
		return 0, 0, nil
	}
	u, g, hasGroup := strings.Cut(s, ":")
	number := func(part string) (uint32, error) {
		if part == "root" {
			return 0, nil
		}
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return 0, fmt.Errorf("the image's user %q is a name, and names are known only inside the image; set securityContext.runAsUser (and runAsGroup) to its number", s)
		}
		return uint32(n), nil
	}
	if uid, err = number(u); err != nil {
		return 0, 0, err
	}
	if hasGroup {
		gid, err = number(g)
	}
	return uid, gid, err
}

// processArgs combines entrypoint and arguments of image and manifest.
func processArgs(x *kubernetes.Container, img ImageConfig, values map[string]string) ([]string, error) {
	expandAll := func(in []string) []string {
		out := make([]string, len(in))
		for i, s := range in {
			out[i] = kubernetes.Expand(s, values)
		}
		return out
	}
	var args []string
	if len(x.Command) > 0 {
		args = expandAll(x.Command)
	} else {
		args = append(args, img.Entrypoint...)
	}
	switch {
	case len(x.Args) > 0:
		args = append(args, expandAll(x.Args)...)
	case len(x.Command) == 0:
		args = append(args, img.Cmd...)
	}
	if len(args) == 0 || args[0] == "" {
		return nil, fmt.Errorf("neither the manifest nor the image names a command")
	}
	return args, nil
}
