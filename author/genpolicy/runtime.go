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
		case v.Claim != nil, v.AzureFile != nil, v.NFS != nil, v.CSI != nil, v.Ephemeral != nil:
			g.warn(v.At, at, noFileSystem)
		}
	}
	for _, c := range g.w.Claims { // a volume of the pod goes before
		if g.mounted(c.Metadata.Name) && !slices.ContainsFunc(spec.Volumes, func(v kubernetes.Volume) bool { return v.Name == c.Metadata.Name }) {
			g.warn(spec.At, "", "volumeClaimTemplate %q: %s", c.Metadata.Name, noFileSystem)
		}
	}
}

const noFileSystem = "Cloister's runtime gives confidential pods no file system of the host: a container that mounts it is refused; " +
	"use a claim with volumeMode: Block as volumeDevices, or an emptyDir"

// mounted says whether a container mounts the volume, which is what a runtime sees of it.
func (g *generator) mounted(volume string) bool {
	for _, c := range g.each() {
		if slices.ContainsFunc(c.VolumeMounts, func(m kubernetes.VolumeMount) bool { return m.Name == volume }) {
			return true
		}
	}
	return false
}
