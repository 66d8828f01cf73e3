// Package tutorial runs the pages below docs/tutorial: what they tell a newcomer to type is typed here.
package tutorial

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister/cloister/test/vmtest"
)

// script joins the ```sh blocks of a page.
func script(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	out.WriteString("set -euo pipefail\n")
	in := false
	for _, line := range strings.Split(string(text), "\n") {
		switch {
		case line == "```sh":
			in = true
		case line == "```":
			in = false
		case in:
			out.WriteString(line + "\n")
		}
	}
	return out.String()
}

func TestFirstPod(t *testing.T) {
	vmtest.Need(t)
	vmtest.Alone(t)
	src, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script(t, "../../docs/tutorial/first-pod.md"))
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "SRC="+src, "CLOISTER_HOME="+filepath.Join(vmtest.Home(t)))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what a failed page left in the background
	t.Logf("%s", out.String())
	if err != nil {
		t.Fatalf("the page failed: %v", err)
	}
	for _, want := range []string{"the secret recipe", "affirming", "tpm_pcr09", "unbroken"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the page did not print %q", want)
		}
	}
}
