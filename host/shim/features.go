package shim

import "github.com/opencontainers/runtime-spec/specs-go/features"

// ociFeatures is what the runtime says of itself in the form of `runc features`: containerd lets a pod have recursive read-only mounts only
// where it reads "rro" here. Mounts with mapped users are told to be missing; containerd expects the entry once there are features.
func ociFeatures() *features.Features {
	no := false
	return &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: "1.3.0",
		MountOptions: []string{"async", "bind", "defaults", "dev", "dirsync", "exec", "noatime", "nodev", "nodiratime", "noexec", "nosuid", "private",
			"rbind", "relatime", "ro", "rprivate", "rro", "rslave", "rw", "slave", "suid", "sync"},
		Linux: &features.Linux{MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &no}}},
	}
}
