package qemu

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/needs"
)

func TestValidateReportsAll(t *testing.T) {
	err := (&vmm.Config{Name: "a b", Dir: "rel", Cmdline: "x", InitdataImage: []byte{1}, TPM: &vmm.TPM{}}).Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{`name "a b"`, "absolute path", "firmware", "needs a kernel", "virtual CPUs", "memory", "accelerator", "multiple of 512", "certificate authority"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not reported in %v", want, err)
		}
	}
}

func TestQMP(t *testing.T) {
	ours, theirs := net.Pipe()
	events := make(chan string, 1)
	q := newQMP(ours, func(name string, _ json.RawMessage) { events <- name })
	go func() {
		dec := json.NewDecoder(theirs)
		_, _ = io.WriteString(theirs, `{"QMP":{"version":{}}}`+"\r\n")
		for {
			var cmd struct {
				Execute string
				ID      uint64
			}
			if dec.Decode(&cmd) != nil {
				return
			}
			id, _ := json.Marshal(cmd.ID)
			if cmd.Execute == "quit" {
				_, _ = io.WriteString(theirs, `{"event":"SHUTDOWN","data":{}}`+"\n"+`{"id":`+string(id)+`,"error":{"class":"C","desc":"no"}}`+"\n")
				theirs.Close()
				return
			}
			_, _ = io.WriteString(theirs, `{"id":`+string(id)+`,"return":{}}`+"\n")
		}
	}()
	ctx := testContext(t)
	if err := q.handshake(ctx); err != nil {
		t.Fatal(err)
	}
	if err := q.execute(ctx, "quit"); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("refused command: %v", err)
	}
	if e := <-events; e != "SHUTDOWN" {
		t.Errorf("event %s", e)
	}
	<-q.done
	if err := q.execute(ctx, "stop"); err == nil {
		t.Error("a command on a closed connection succeeded")
	}
}

func TestDialPrefix(t *testing.T) {
	ours, theirs := net.Pipe()
	s, err := newMux(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got := make(chan uint32, 1)
	go func() {
		srv, err := yamux.Server(theirs, nil)
		if err != nil {
			return
		}
		c, err := srv.Accept()
		if err != nil {
			return
		}
		var p [4]byte
		_, _ = io.ReadFull(c, p[:])
		got <- binary.BigEndian.Uint32(p[:])
	}()
	c, err := dialStream(testContext(t), s, 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p := <-got; p != 1024 {
		t.Errorf("port %d", p)
	}
}

func TestCleanStale(t *testing.T) {
	ctx := testContext(t)
	dir := filepath.Join(t.TempDir(), "vm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	tail := needs.Program(t, "tail")
	start := func(name, arg string, env ...string) *exec.Cmd {
		cmd := &exec.Cmd{Path: tail, Args: []string{name, "-f", arg}, Env: env}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ours := start("qemu-system-test", file)
	bare := start("qemu-system-test", "/dev/null", process.Environment(dir)...) // of a VM whose command line names nothing in its directory
	foreign := start("other", file, process.Environment(dir)...)
	defer foreign.Process.Kill()
	if err := CleanStale(ctx, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Error("the directory is still there")
	}
	for _, left := range []*exec.Cmd{ours, bare} {
		// A killed process may take a moment to end; one that was left would not.
		late := time.AfterFunc(time.Minute, func() { _ = left.Process.Signal(syscall.SIGTERM) })
		_ = left.Wait()
		late.Stop()
		if how, ok := left.ProcessState.Sys().(syscall.WaitStatus); !ok || how.Signal() != syscall.SIGKILL {
			t.Errorf("%q %q was left: %v", left.Args, left.Env, left.ProcessState)
		}
	}
	if err := foreign.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a foreign process was hit: %v", err)
	}
	if err := CleanStale(ctx, dir); err != nil {
		t.Errorf("second run: %v", err)
	}
	for _, bad := range []string{"", "/", "rel"} {
		if CleanStale(context.Background(), bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzParseQMP(f *testing.F) {
	for _, s := range []string{`{"QMP":{}}`, `{"return":{},"id":1}`, `{"error":{"class":"a","desc":"b"}}`, `{"event":"X","data":null}`, `[]`, `{"id":-1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseQMP(b)
		if err == nil && m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Error("an empty message was accepted")
		}
	})
}
