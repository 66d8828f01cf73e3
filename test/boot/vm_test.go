package boot

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

// bootLimit is far more than a boot takes, on a busy machine too.
const bootLimit = 10 * time.Minute

// Firmware of Debian's ovmf package.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// needTools skips a test on a machine that cannot run it.
func needTools(t *testing.T) {
	t.Helper()
	needs.Long(t, "boots virtual machines")
	needs.Programs(t, "qemu-system-x86_64", "swtpm", "swtpm_setup")
	needs.Files(t, ovmfCode, ovmfVars)
}

type vm struct {
	Kernel, Initrd, Cmdline string
	VCPUs, MemoryMiB        int
	S3                      bool
}

// measurements are what the probe printed.
type measurements struct {
	PCRs map[int]string
	Log  []byte
	// Took is the time from starting QEMU to the probe's first line.
	Took time.Duration
}

// boot runs one machine to its end.
func boot(t *testing.T, v vm) *measurements {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	dir, err := os.MkdirTemp("/tmp", "cb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if out, err := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpmstate", dir,
		"--pcr-banks", "sha256", "--overwrite").CombinedOutput(); err != nil {
		t.Fatalf("making a TPM: %v\n%s", err, out)
	}
	tpm := startTPM(ctx, t, dir)
	vars, err := os.ReadFile(ovmfVars)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vars"), vars, 0o600); err != nil {
		t.Fatal(err)
	}
	// Without cx16: QEMU 7.2 sometimes returns wrong flags from an emulated
	// cmpxchg16b, and the kernel then dies in one of many ways. With a thread for
	// each processor it sometimes runs code that the kernel is just patching.
	args := []string{
		"-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max,la57=off,-cx16", "-m", strconv.Itoa(v.MemoryMiB), "-smp", strconv.Itoa(v.VCPUs),
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + ovmfCode,
		"-drive", "if=pflash,format=raw,unit=1,file=" + filepath.Join(dir, "vars"),
		"-chardev", "socket,id=tpm,fd=3", "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
		"-kernel", v.Kernel, "-initrd", v.Initrd, "-append", v.Cmdline, "-serial", "stdio",
	}
	if !v.S3 {
		args = append(args, "-global", "ICH9-LPC.disable_s3=1")
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.ExtraFiles = []*os.File{tpm}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m, tail, perr := readProbe(out, started)
	err = cmd.Wait()
	if perr != nil || err != nil {
		t.Fatalf("booting: %v\nconsole ends with:\n%s\n%s", errors.Join(perr, err), tail, stderr.Bytes())
	}
	return m
}

// startTPM runs a software TPM and returns the other end of its control
// channel. A pair of connected sockets needs no path, and nobody has to wait
// for one to appear.
func startTPM(ctx context.Context, t *testing.T, dir string) *os.File {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "tpm"), os.NewFile(uintptr(fds[1]), "tpm")
	defer theirs.Close()
	t.Cleanup(func() { ours.Close() })
	cmd := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir,
		"--ctrl", "type=unixio,clientfd=3", "--terminate", "--flags", "startup-clear")
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return ours
}

var (
	rePCR = regexp.MustCompile(`probe: pcr (\d+) ([0-9a-f]{64})`)
	reLog = regexp.MustCompile(`probe: log (\S+)`)
)

func readProbe(r io.Reader, started time.Time) (*measurements, string, error) {
	m := &measurements{PCRs: map[int]string{}}
	var log strings.Builder
	var tail []string
	ended := false
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		line := sc.Text()
		if tail = append(tail, line); len(tail) > 40 {
			tail = tail[1:]
		}
		if m.Took == 0 && strings.Contains(line, "probe: ") {
			m.Took = time.Since(started)
		}
		if g := rePCR.FindStringSubmatch(line); g != nil {
			n, err := strconv.Atoi(g[1])
			if err != nil {
				return nil, "", err
			}
			m.PCRs[n] = g[2]
		}
		if g := reLog.FindStringSubmatch(line); g != nil {
			log.WriteString(g[1])
		}
		ended = ended || strings.Contains(line, "probe: end")
	}
	text := strings.Join(tail, "\n")
	if err := sc.Err(); err != nil {
		return nil, text, err
	}
	if !ended || len(m.PCRs) != 24 {
		return nil, text, fmt.Errorf("the probe did not report (%d registers)", len(m.PCRs))
	}
	var err error
	if m.Log, err = base64.StdEncoding.DecodeString(log.String()); err != nil {
		return nil, text, fmt.Errorf("event log: %w", err)
	}
	return m, text, nil
}
