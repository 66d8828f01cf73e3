package ended

import (
	"os/exec"
	"testing"
	"time"
)

func TestEnd(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if err := Wait(pid, 10*time.Millisecond); err == nil {
		t.Error("a running process has ended")
	}
	if err := Kill(pid, 10*time.Second); err != nil {
		t.Error(err)
	}
	if err := Wait(pid, 10*time.Second); err != nil {
		t.Errorf("a zombie: %v", err)
	}
	_ = cmd.Wait() // killed
	if err := Wait(pid, 0); err != nil {
		t.Errorf("one that is no more: %v", err)
	}
}
