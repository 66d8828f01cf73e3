package cri

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func logs(t *testing.T, p *Pod, main *Container) {
	lines := main.Log()
	if len(lines) != 2 {
		t.Fatalf("the log of main is %+v", lines)
	}
	for _, l := range lines {
		if want := map[string]string{"stdout": "out", "stderr": "err"}[l.Stream]; l.Text != want || l.Partial || time.Since(l.Time) > time.Hour {
			t.Errorf("a line of main's log is %+v", l)
		}
	}
	long := p.RunContainer(t, Shell("long-lines", `head -c 40000 /dev/zero | tr '\0' x; echo; echo -n no end of line`))
	long.ExpectExit(0)
	wait(t, exitTimeout, "the log has the last line", func() bool { return strings.Contains(long.Output(), "no end of line") })
	var partial, total int
	for _, l := range long.Log() {
		if l.Partial {
			partial++
		}
		if strings.HasPrefix(l.Text, "x") {
			total += len(l.Text)
		}
	}
	if total != 40000 || partial < 2 {
		t.Errorf("a line of 40000 bytes is in the log with %d bytes and %d partial lines", total, partial)
	}
	long.Remove()

	big := p.RunContainer(t, Program("spam", "spam", "8"))
	big.ExpectExit(0)
	wait(t, exitTimeout, "the log has all that was written", func() bool {
		fi, err := os.Stat(big.LogFile())
		if err != nil || fi.Size() <= 8<<20 {
			return false
		}
		all := big.Log() // of two streams, of which either may be first
		return len(stream(all, "stderr")) == 1 && len(stream(all, "stdout")) >= 8<<20/100
	})
	out := stream(big.Log(), "stdout")
	if len(out) != 8<<20/100 {
		t.Errorf("of %d lines there are %d in the log", 8<<20/100, len(out))
	}
	for n, l := range out {
		if len(l.Text) != 99 || strings.TrimLeft(l.Text, "0") != strings.TrimLeft(strconv.Itoa(n), "0") {
			t.Errorf("line %d of the log is %q", n, l.Text)
			break
		}
	}
	big.Remove()

	// The kubelet rotates logs: it renames the file and asks for a new one.
	talk := p.RunContainer(t, Shell("rotated", `n=0; while :; do echo line $n; n=$((n+1)); sleep 0.05; done`))
	talk.Says("line 3\n")
	old := talk.LogFile() + ".old"
	if err := os.Rename(talk.LogFile(), old); err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.ReopenContainerLog(call(t), &runtime.ReopenContainerLogRequest{ContainerId: talk.ID}); err != nil {
		t.Errorf("reopening a log: %v", err)
	}
	wait(t, exitTimeout, "the new log has lines", func() bool { return len(talk.Log()) > 3 })
	first, err := ReadLog(old)
	if err != nil {
		t.Error(err)
	}
	for n, l := range append(first, talk.Log()...) {
		if want := "line " + strconv.Itoa(n); l.Text != want {
			t.Errorf("over a rotation line %d is %q", n, l.Text)
			break
		}
	}
	talk.Stop(0)
	talk.Remove()
}

func stream(lines []LogLine, name string) []LogLine {
	var out []LogLine
	for _, l := range lines {
		if l.Stream == name {
			out = append(out, l)
		}
	}
	return out
}
