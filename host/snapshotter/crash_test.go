package snapshotter

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/cloister/cloister/layer"
)

// crashRoot, when set, makes this test binary a process that pulls and removes until it is killed.
const crashRoot = "CLOISTER_SNAPSHOTTER_CRASH_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(crashRoot); root != "" {
		if err := crash(root); err != nil {
			fmt.Println("crash:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// crashLayers are those of the process that is killed, and of who looks at what it left.
func crashLayers(t testing.TB) (*fakeContent, []testLayer) {
	content := newContent()
	return content, content.addImage(t, tarOfSize(t, 1, 2<<20), tarOfSize(t, 2, 10), tarOfSize(t, 3, 1<<20))
}

// crash works on a root for as long as it lives.
func crash(root string) error {
	content, layers := crashLayers(quiet{})
	cfg := Default()
	cfg.Root = root
	s, err := New(context.Background(), cfg, slog.New(slog.DiscardHandler), content, layer.Build)
	if err != nil {
		return err
	}
	fmt.Println("at work")
	for n := (&number{n: os.Getpid() << 16}); ; {
		var names []string
		if err := s.Walk(context.Background(), func(_ context.Context, i snapshots.Info) error {
			names = append([]string{i.Name}, names...)
			return nil
		}); err != nil {
			return err
		}
		for len(names) > 0 { // those that have children come later
			var left []string
			for _, name := range names {
				if err := s.Remove(context.Background(), name); err != nil {
					left = append(left, name)
				}
			}
			if len(left) == len(names) {
				return fmt.Errorf("cannot remove %v", left)
			}
			names = left
		}
		parent := ""
		for _, l := range layers {
			name, err := unpack(context.Background(), s, n, parent, l, nil)
			if err != nil {
				return err
			}
			parent = name
			fmt.Println("one more layer")
		}
	}
}

// quiet is a testing.TB outside of tests.
type quiet struct{ testing.TB }

func (quiet) Helper()           {}
func (quiet) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// TestKill kills a process at work again and again. What the metadata names is always whole, and what it does not name goes.
func TestKill(t *testing.T) {
	root := t.TempDir()
	content, layers := crashLayers(t)
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	seen := map[int]int{}
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), crashRoot+"="+root)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for lines, n := bufio.NewScanner(out), 0; n <= round%4; n++ { // "at work", and so many layers
			if !lines.Scan() || n == 0 && lines.Text() != "at work" {
				t.Fatalf("the process said %q", lines.Text())
			}
		}
		time.Sleep(time.Duration(round*7+1) * time.Millisecond) // somewhere in its work, elsewhere each time
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			s := open(t, root, content, asIs)
			var committed []string
			all := 0
			if err := s.Walk(t.Context(), func(_ context.Context, i snapshots.Info) error {
				all++
				if i.Kind == snapshots.KindCommitted {
					committed = append(committed, i.Name)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			seen[len(committed)]++
			entries, err := os.ReadDir(filepath.Join(root, snapshotsDir))
			if err != nil || len(entries) != all {
				t.Errorf("there are %d directories for %d snapshots, %v", len(entries), all, err)
			}
			if stored, unfinished := inStore(t, s); len(stored) > 3 || len(unfinished) > 0 {
				t.Errorf("there are %v and %v", stored, unfinished)
			}
			for _, name := range committed {
				for _, l := range layers {
					if l.chain == plain(name) {
						whole(t, layerFile(t, s, name), l)
					}
				}
			}
		})
	}
	t.Log("committed layers found, and how often:", seen)
	if len(seen) < 2 {
		t.Error("all kills came at the same point")
	}
}
