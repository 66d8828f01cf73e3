package genpolicy

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
)

// warnRuntime says what a policy can allow and Cloister's runtime refuses all the same in a confidential pod. Other runtimes may take it.
func (g *generator) warnRuntime() {
	spec := &g.w.Spec
	if spec.HostNetwork {
		g.warn(spec.At, "hostNetwork", "Cloister's runtime refuses the pod: a virtual machine has interfaces of its own, and not the host's")
	}
	for i, v := range spec.Volumes {
		if !g.mounted(v.Name) {
			continue
		}
		at := fmt.Sprintf("volumes[%d]", i)
		switch {
		case v.HostPath != nil && !strings.HasPrefix(path.Clean(v.HostPath.Path), "/dev/"): // those may be block devices
			g.warn(v.At, at+".hostPath", "Cloister's runtime gives confidential pods no directory or file of the host: a container that mounts it is refused; "+
				"use an emptyDir, a ConfigMap, or a claim with volumeMode: Block")
		case g.isDirect(v.Name):
			d, _ := g.directVolume(v.Name)
			g.warn(v.At, at, "%s", d.warning())
		case v.Claim != nil, v.AzureFile != nil, v.NFS != nil, v.CSI != nil, v.Ephemeral != nil:
			g.warn(v.At, at, "%s", noFileSystem+g.unknownClass(&v))
		}
	}
	for _, c := range g.w.Claims { // a volume of the pod goes before
		if g.mounted(c.Metadata.Name) && !slices.ContainsFunc(spec.Volumes, func(v kubernetes.Volume) bool { return v.Name == c.Metadata.Name }) {
			what := noFileSystem
			if d, _ := g.directVolume(c.Metadata.Name); d != nil {
				what = d.warning()
			}
			g.warn(spec.At, "", "volumeClaimTemplate %q: %s", c.Metadata.Name, what)
		}
	}
}

func (g *generator) isDirect(volume string) bool {
	d, _ := g.directVolume(volume)
	return d != nil
}

// unknownClass says that the settings go by StorageClass, and that of a claim is not known.
func (g *generator) unknownClass(v *kubernetes.Volume) string {
	if v.Claim == nil || g.set.Claim(g.w, v.Claim.Name) != nil || !slices.ContainsFunc(g.s.DirectVolumes, func(d DirectVolume) bool { return d.StorageClass != "" }) {
		return ""
	}
	return fmt.Sprintf(" (the claim %s is not among the manifests, so its StorageClass is not known: --config-file takes it)", v.Claim.Name)
}

const noFileSystem = "Cloister's runtime gives confidential pods no file system of the host: a container that mounts it is refused; " +
	"use a claim with volumeMode: Block as volumeDevices, an emptyDir, or a direct-assigned volume that the settings declare (direct_volumes)"

// mounted says whether a container mounts the volume, which is what a runtime sees of it.
func (g *generator) mounted(volume string) bool {
	for _, c := range g.each() {
		if slices.ContainsFunc(c.VolumeMounts, func(m kubernetes.VolumeMount) bool { return m.Name == volume }) {
			return true
		}
	}
	return false
}
