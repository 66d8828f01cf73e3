package cgroup

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/needs"
)

// TestPlaces makes groups where containerd and kubelet want them. Parents that are missing are made, and stay: they belong to others.
func TestPlaces(t *testing.T) {
	const id = "4f0d7f7c3f5be1e9b1b0a3cbe2b8a1b7e9d5a9c1f7e64a3f2b1c0d9e8f7a6b5c"
	const uid = "1b4e28ba_2fa1_11d2_883f_0016d3cca427"
	top := fmt.Sprintf("cloister_test_%d_%d", os.Getpid(), time.Now().UnixNano())
	for name, text := range map[string]string{
		"ctr":                         "/" + top + "/" + id,                                    // /k8s.io/ID, /default/ID
		"kubelet, best effort":        "/" + top + "/kubepods/besteffort/pod" + uid + "/" + id, // with cgroupfs
		"kubelet, guaranteed":         "/" + top + "/kubepods/pod" + strings.ReplaceAll(uid, "_", "-") + "/" + id,
		"kubelet, systemd":            top + "-kubepods-besteffort-pod" + uid + ".slice:cri-containerd:" + id,
		"kubelet, systemd, no prefix": top + "-kubepods-pod" + uid + ".slice::" + id,
	} {
		t.Run(name, func(t *testing.T) {
			needs.Root(t, "the host's control groups")
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			l, err := ParseLocation(text)
			if err != nil {
				t.Fatal(err)
			}
			above := Location{Path: "/" + top}
			if l.Systemd() {
				above.Path += ".slice"
			}
			parent, err := open(State{Location: above})
			if err != nil || len(parent.dirs()) == 0 {
				needs.Missing(t, "control groups: %v", err)
			}
			if err := os.MkdirAll(parent.dirs()[0], 0o755); err != nil {
				needs.Missing(t, "the right to make control groups: %v", err)
			}
			t.Cleanup(func() {
				if err := parent.Destroy(context.WithoutCancel(ctx)); err != nil || parent.Exists() {
					t.Errorf("something is left: %v", err)
				}
			})
			plan, err := Plan(l)
			if err != nil {
				t.Fatal(err)
			}
			cmd := worker(t)
			g, err := Create(ctx, l, Limits{MemoryBytes: 256 << 20, CPUQuota: 50_000, CPUPeriod: 100_000, CPUShares: 2}, cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if pids, err := g.PIDs(); err != nil || !slices.Contains(pids, cmd.Process.Pid) {
				t.Errorf("processes %v, %v", pids, err)
			}
			if s, err := g.Stats(ctx); err != nil || s.MemoryLimit != 256<<20 {
				t.Errorf("%+v, %v", s, err)
			}
			planned, err := Open(plan) // by who knows no more than the plan
			if err != nil {
				t.Fatal(err)
			}
			if err := planned.Destroy(ctx); err != nil || g.Exists() {
				t.Errorf("it is still there: %v", err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("the process was not killed")
			}
		})
	}
}
