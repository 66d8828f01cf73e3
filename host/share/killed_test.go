package share

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/test/ended"

	"golang.org/x/sys/unix"
)

// life is an environment variable that makes this test binary the process that dies.
const life = "CLOISTER_SHARE_TEST_LIFE"

func TestMain(m *testing.M) {
	if stage := os.Getenv(life); stage != "" {
		if err := live(stage, os.Args[1], os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// stages are the points at which a process is killed.
var stages = []string{"prepared", "started", "bound", "mounted", "removed"}

// live makes a Share up to a stage, says so, and waits for its end.
func live(stage, dir, data string) error {
	reached := func(s string) bool {
		if s != stage {
			return false
		}
		fmt.Println("reached", os.Getpid())
		select {}
	}
	if stage == "prepared" {
		s := &Share{dir: dir + "/share"}
		if err := s.prepare(); err != nil {
			return err
		}
		reached("prepared")
	}
	s, err := Start(context.Background(), Config{Dir: dir + "/share", Program: os.Getenv(programEnv)})
	if err != nil {
		return err
	}
	fmt.Println("virtiofsd", s.PID())
	reached("started")
	src, err := os.Open(data)
	if err != nil {
		return err
	}
	for _, name := range []string{"v1", "v2"} {
		if _, err := s.Bind(src, name, BindOptions{Submounts: true, Follow: true}); err != nil {
			return err
		}
	}
	reached("bound")
	if _, err := s.Mount("c1", []Mount{{Type: "bind", Source: data, Options: []string{"rbind"}}, {Type: "tmpfs", Source: "tmpfs"}}); err != nil {
		return err
	}
	reached("mounted")
	if err := s.Remove("v1"); err != nil {
		return err
	}
	reached("removed")
	return errors.New("unknown stage")
}

func TestKilled(t *testing.T) {
	needRoot(t)
	for _, stage := range stages {
		t.Run(stage, func(t *testing.T) {
			dir := tempDir(t)
			put(t, dir+"/data/f", "keep")
			if err := os.Mkdir(dir+"/data/sub", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", dir+"/data/sub", "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Unmount(dir+"/data/sub", unix.MNT_DETACH) }()
			put(t, dir+"/data/sub/g", "keep too")
			cmd := exec.CommandContext(testContext(t), os.Args[0], dir, dir+"/data")
			cmd.Env = append(os.Environ(), life+"="+stage)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			daemon := 0
			lines := bufio.NewScanner(out)
			for lines.Scan() && !strings.HasPrefix(lines.Text(), "reached") {
				if _, err := fmt.Sscanf(lines.Text(), "virtiofsd %d", &daemon); err != nil {
					t.Error(lines.Text())
				}
			}
			var served []int
			if stage != "prepared" {
				// A monitor that outlives the owner: its connection alone must not keep virtiofsd.
				served = append(served, daemon, confined(t, dir+"/share/"+socketName, daemon))
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			for _, pid := range served {
				if err := ended.Wait(pid, time.Minute); err != nil {
					t.Fatal("virtiofsd outlived its owner:", err)
				}
			}
			for range 2 { // twice, as delete may be called twice
				if err := Cleanup(t.Context(), dir+"/share"); err != nil {
					t.Fatal(err)
				}
			}
			if names, _ := filepath.Glob(dir + "/*"); !slices.Equal(names, []string{dir + "/data"}) {
				t.Errorf("left: %v", names)
			}
			want(t, dir+"/data/f", "keep")
			want(t, dir+"/data/sub/g", "keep too")
		})
	}
}
