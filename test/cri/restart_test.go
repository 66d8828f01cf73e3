package cri

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// restarts are ends and starts of containerd under a pod.
func restarts(t *testing.T, w *world) {
	p := w.NewPod(t, w.handler, "restarts").Run()
	ticker := p.RunContainer(t, Shell("ticker", `n=0; while :; do echo tick $n; n=$((n+1)); sleep 0.2; done`))
	main := p.RunContainer(t, Shell("main", Sleeper))
	created := p.Create(t, Shell("created", "echo started after the restart; exit 11"))
	shared := t.TempDir()
	config := Shell("short", "while [ ! -e /shared/go ]; do sleep 0.1; done; touch /shared/gone; exit 12")
	config.Mounts = []*runtime.Mount{Mount(shared, "/shared")}
	short := p.RunContainer(t, config)
	ticker.Says("tick 3\n")
	ip := p.IP()
	for _, how := range []struct {
		name string
		do   func()
	}{
		{"restart", func() {}},
		{"kill -9", w.Daemon.Kill},
	} {
		how.do()
		w.Restart(t)
		if s := p.Status(); s.State != runtime.PodSandboxState_SANDBOX_READY || s.Network.Ip != ip {
			t.Fatalf("after %s of containerd the pod is %v", how.name, s)
		}
		for _, k := range []*Container{ticker, main, short} {
			if s := k.Status(); s.State != runtime.ContainerState_CONTAINER_RUNNING {
				t.Fatalf("after %s of containerd %s is %v", how.name, k.Config.Metadata.Name, s)
			}
		}
		main.ExpectSh("echo still", "still")
		at := len(ticker.Log())
		wait(t, exitTimeout, "the log goes on", func() bool { return len(ticker.Log()) > at+5 })
	}
	created.Start()
	created.ExpectExit(11)
	created.Says("started after the restart")
	w.Daemon.Kill()
	if err := os.WriteFile(filepath.Join(shared, "go"), nil, 0o644); err != nil { // short ends while there is no containerd
		t.Fatal(err)
	}
	wait(t, exitTimeout, "short has ended", func() bool {
		_, err := os.Stat(filepath.Join(shared, "gone"))
		return err == nil
	})
	w.Restart(t)
	if s := short.Exit(); s.ExitCode != 12 && s.ExitCode != 255 { // 255, "unknown", is what containerd makes of it with runc
		t.Errorf("a container that ended while there was no containerd has exit code %d", s.ExitCode)
	}
	var out bytes.Buffer
	if err := main.ExecStream(streamContext(t), StreamOptions{Stdin: strings.NewReader("through"), Stdout: &out}, "cat"); err != nil || out.String() != "through" {
		t.Errorf("an exec with stdin after a restart: %q, %v", out.String(), err)
	}
	ticker.Stop(0)
	ticker.ExpectExit(137)
	var last string
	for _, l := range ticker.Log() {
		if l.Text == last {
			t.Errorf("the log has %q twice", last)
		}
		last = l.Text
	}
	p.Remove()
}
