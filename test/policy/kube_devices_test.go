package policy_test

import (
	"testing"

	"github.com/cloister/cloister/test/kubepod"
	"github.com/cloister/cloister/wire/agent"
)

// TestGeneratedBlockDevice: a claim that is a disk in the container is a disk, and no device of the guest in its place.
func TestGeneratedBlockDevice(t *testing.T) {
	g := generate(t, `apiVersion: v1
kind: Pod
metadata: {name: web-bcdf-ghjkl, namespace: shop}
spec:
  containers:
  - {name: a, image: "registry.example/app:1", volumeDevices: [{name: disk, devicePath: /dev/xvda}]}
  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk}}]
`, oneImage{}, nil)
	e := g.engine(t)
	mustAllow(t, e, kubepod.Sandbox())
	honest := func(id string) createRequest {
		r := g.request(t, "a", id)
		r.OCI.Linux.Devices = []*agent.LinuxDevice{{Path: "/dev/xvda", Type: "b", Major: 254, Minor: 16}}
		r.Devices = []*agent.Device{{ContainerPath: "/dev/xvda", Type: "blk", Id: "02/05"}}
		return r
	}
	for name, change := range map[string]func(createRequest){
		"character device": func(r createRequest) {
			r.OCI.Linux.Devices[0] = &agent.LinuxDevice{Path: "/dev/xvda", Type: "c", Major: 10, Minor: 236}
		},
		"pipe":         func(r createRequest) { r.OCI.Linux.Devices[0].Type = "p" },
		"another node": func(r createRequest) { r.OCI.Linux.Devices[0].Path = "/dev/vda" },
		"a node more": func(r createRequest) {
			r.OCI.Linux.Devices = append(r.OCI.Linux.Devices, &agent.LinuxDevice{Path: "/dev/kvm", Type: "b"})
		},
		"another disk": func(r createRequest) { r.Devices[0].ContainerPath = "/dev/vda" },
		"a disk twice": func(r createRequest) { r.Devices = append(r.Devices, r.Devices[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			r := honest(kubepod.ID(1))
			change(r)
			mustDeny(t, e, r)
		})
	}
	mustAllow(t, e, honest(kubepod.ID(1)))
	if _, err := e.Begin(t.Context(), "HostStorageRequest", &agent.Device{ContainerPath: "/dev/xvda", Type: "blk", Id: "02/05"}); err != nil {
		t.Error(err)
	}
}
