package main

import (
	"fmt"
	"path/filepath"
	"runtime"
)

// snapshotterName is how containerd's configuration names cloister-snapshotter.
const snapshotterName = "cloister"

// defaultSnapshotterSocket is where cloister-snapshotter listens when it is not told otherwise.
const defaultSnapshotterSocket = "/run/cloister/snapshotter.sock"

// addSnapshotter adds what containerd has to know of the snapshotter on a socket. From 1.7 only the handlers named use it; 1.6 knows
// one for all of CRI. The differ beside it, which makes layers straight of what was downloaded, is something that 1.6 does not know.
func addSnapshotter(doc, plugins, cri map[string]any, version, socket string, handlers []string) error {
	if !filepath.IsAbs(socket) {
		return usageError{fmt.Errorf("the snapshotter's socket is %q, want an absolute path", socket)}
	}
	proxy := map[string]any{snapshotterName: map[string]any{"type": "snapshot", "address": socket}}
	doc["proxy_plugins"] = proxy
	if version == "1.6" {
		containerd, ok := cri["containerd"].(map[string]any)
		if !ok {
			return fmt.Errorf("containerd's configuration: containerd is not a table")
		}
		containerd["snapshotter"] = snapshotterName
		return nil
	}
	differ := snapshotterName + "-diff"
	proxy[differ] = map[string]any{"type": "diff", "address": socket}
	plugins["io.containerd.service.v1.diff-service"] = map[string]any{"default": []string{differ, "walking"}}
	if version == "1.7" {
		return nil
	}
	ours := map[string]any{"type": "snapshot", "address": socket, "capabilities": []string{"rebase"}}
	if socket == defaultSnapshotterSocket { // where its files are, for the kubelet's statistics
		ours["exports"] = map[string]string{"root": "/var/lib/cloister/snapshotter"}
	}
	proxy[snapshotterName] = ours
	platforms := map[string]any{}
	for _, name := range handlers {
		platforms[name] = map[string]any{"snapshotter": snapshotterName}
	}
	plugins["io.containerd.cri.v1.images"] = map[string]any{"runtime_platforms": platforms}
	platform := "linux/" + runtime.GOARCH
	plugins["io.containerd.transfer.v1.local"] = map[string]any{"unpack_config": []map[string]any{
		{"platform": platform, "snapshotter": "overlayfs", "differ": "walking"},
		{"platform": platform, "snapshotter": snapshotterName, "differ": differ},
	}}
	return nil
}
