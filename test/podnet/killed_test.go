package podnet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/network"
)

const ownerEnv = "PODNET_OWNER"

// TestMain is also the program that owns a pod's network and is killed.
func TestMain(m *testing.M) {
	if text := os.Getenv(ownerEnv); text != "" {
		if err := own(text); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// own attaches a network, says so, and waits for its end.
func own(text string) error {
	var cfg network.Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	if _, err := network.Attach(context.Background(), cfg); err != nil {
		return err
	}
	if err := foreignThreads(); err != nil {
		return err
	}
	fmt.Println("attached")
	_, err := io.ReadAll(os.Stdin)
	return err
}

// foreignThreads looks for threads of this process that stayed in another network namespace. Those that have just done their work there
// are still ending.
func foreignThreads() error {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	for end := time.Now().Add(time.Minute); ; {
		found := ""
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			return err
		}
		for _, task := range tasks {
			if ns, err := os.Readlink(task); err == nil && ns != own {
				found = task
			}
		}
		if found == "" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is in another network namespace", found)
		}
	}
}

// startOwner starts this program as the owner of a network.
func startOwner(t *testing.T, cfg network.Config) (cmd *exec.Cmd, line func() string) {
	t.Helper()
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), ownerEnv+"="+string(b))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil { // held open until the end
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, func() string {
		text, _ := bufio.NewReader(out).ReadString('\n')
		return strings.TrimSpace(text)
	}
}

// TestKilledOwner ends the owner in the middle and afterwards; Cleanup brings the namespace back to what it was.
func TestKilledOwner(t *testing.T) {
	need(t)
	for _, model := range models {
		t.Run(string(model), func(t *testing.T) {
			ctx := testContext(t)
			node, ns := newNetns(t, "node"), newNetns(t, "pod")
			newCNI(t, node, bridgeNet).add(ns, "eth0")
			newCNI(t, node, ptpNet).add(ns, "net1")
			poll(t, ctx, "addresses", func() bool { return ns.run("ip -6 addr show tentative") == "" })
			before := ns.snapshot()
			cfg := network.Config{NetNS: ns.path, StateFile: stateFile(t), Model: model, Queues: 2}
			var killed, done int
			for after := time.Duration(0); after < 15*time.Millisecond; after += time.Millisecond {
				cmd, line := startOwner(t, cfg)
				// From the first sign of the state file on; a ticker would be too late.
				for {
					if _, err := os.Stat(filepath.Dir(cfg.StateFile) + "/network.json.new"); err == nil {
						break
					}
					if _, err := os.Stat(cfg.StateFile); err == nil {
						break
					}
					if ctx.Err() != nil {
						t.Fatalf("no state file: %s", line())
					}
				}
				timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
				switch got := line(); got {
				case "attached":
					done++
				case "":
					killed++
				default:
					t.Fatalf("the owner says %q", got)
				}
				timer.Stop()
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				for range 2 {
					if err := network.Cleanup(ctx, cfg.StateFile); err != nil {
						t.Fatal(err)
					}
				}
				ns.expectSnapshot(before, fmt.Sprintf("after Cleanup of an owner killed %v after it began", after))
				if left, _ := filepath.Glob(filepath.Dir(cfg.StateFile) + "/*"); len(left) > 0 {
					t.Fatalf("left behind: %v", left)
				}
			}
			if killed == 0 {
				t.Error("no owner was killed in the middle")
			}
			t.Logf("%d killed in the middle, %d when they were done", killed, done)
			// Killed when all is done, for certain.
			cmd, line := startOwner(t, cfg)
			if got := line(); got != "attached" {
				t.Fatalf("the owner says %q", got)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if model == network.ModelTC && !strings.Contains(ns.run("tc filter show dev eth0 ingress"), "mirred") {
				t.Error("a redirection was expected to be left")
			}
			if _, err := network.Attach(ctx, cfg); !errors.Is(err, network.ErrInUse) {
				t.Errorf("with the state of a killed owner: %v, expected ErrInUse", err)
			}
			if err := network.Cleanup(ctx, cfg.StateFile); err != nil {
				t.Fatal(err)
			}
			ns.expectSnapshot(before, "after Cleanup of a killed owner")
		})
	}
}

// TestCleanupWithoutNamespace has a pod whose namespace went before it was cleaned up, and one whose path is another pod's by now.
func TestCleanupWithoutNamespace(t *testing.T) {
	need(t)
	ctx := testContext(t)
	attach := func(ns *netns) string {
		cfg := network.Config{NetNS: ns.path, StateFile: stateFile(t)}
		cmd, line := startOwner(t, cfg)
		if got := line(); got != "attached" {
			t.Fatalf("the owner says %q", got)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return cfg.StateFile
	}
	cleanup := func(state string) {
		t.Helper()
		if err := network.Cleanup(ctx, state); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the state file: %v, expected it to be gone", err)
		}
	}
	unmounted, missing, replaced, other := newNetns(t, "a"), newNetns(t, "b"), newNetns(t, "c"), newNetns(t, "d")
	var states []string
	for _, ns := range []*netns{unmounted, missing, replaced} {
		ns.run("ip link add eth0 type veth peer name eth0 netns " + newNetns(t, "peer").path + "\nip link set eth0 up")
		states = append(states, attach(ns))
	}
	unmounted.remove()
	cleanup(states[0])
	missing.remove()
	if err := os.Remove(missing.path); err != nil {
		t.Fatal(err)
	}
	cleanup(states[1])

	// The other namespace looks exactly like the one that was there, up to a tap with our name.
	other.run("ip tuntap add tap0_cloister mode tap\nip link add eth0 type veth peer name eth0 netns " + newNetns(t, "peer").path)
	if err := unix.Mount(other.path, replaced.path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	before := other.snapshot()
	cleanup(states[2])
	other.expectSnapshot(before, "another pod's")
	if err := unix.Unmount(replaced.path, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := network.Cleanup(ctx, filepath.Join(t.TempDir(), "nothing.json")); err != nil {
		t.Error("without a state file:", err)
	}
}
