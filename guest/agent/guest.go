package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/wire/agent"
)

// GetGuestDetails tells what this guest is and can.
func (a *Agent) GetGuestDetails(_ context.Context, req *agent.GuestDetailsRequest) (*agent.GuestDetailsResponse, error) {
	resp := &agent.GuestDetailsResponse{AgentDetails: &agent.AgentDetails{
		Version: a.cfg.Version, InitDaemon: os.Getpid() == 1, StorageHandlers: storageDrivers(), SupportsSeccomp: true,
		ExtraFeatures: append([]string{"agent-policy", "seccomp", agent.FeatureOutputKept, agent.FeaturePolicyFragments, agent.FeatureImageVolumes}, a.cfg.Features...),
	}}
	slices.Sort(resp.AgentDetails.ExtraFeatures)
	if req.GetMemBlockSize() {
		text, err := os.ReadFile("/sys/devices/system/memory/block_size_bytes")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("reading the memory block size: %w", err)
		}
		if err == nil {
			n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 16, 64)
			if err != nil {
				return nil, fmt.Errorf("reading the memory block size: %w", err)
			}
			resp.MemBlockSizeBytes = n
		}
	}
	if req.GetMemHotplugProbe() {
		_, err := os.Stat("/sys/devices/system/memory/probe")
		resp.SupportMemHotplugProbe = err == nil
	}
	return resp, nil
}

// SetGuestDateTime sets the clock.
func (a *Agent) SetGuestDateTime(_ context.Context, req *agent.SetGuestDateTimeRequest) (*emptypb.Empty, error) {
	const micro = 1_000_000
	if req.GetSec() < 0 || req.GetUsec() < 0 || req.GetUsec() >= micro {
		return nil, invalid("time %d.%06d", req.GetSec(), req.GetUsec())
	}
	tv := unix.Timeval{Sec: req.GetSec(), Usec: req.GetUsec()}
	if err := unix.Settimeofday(&tv); err != nil {
		return nil, fmt.Errorf("setting the clock: %w", err)
	}
	a.log.Info("clock set by the host", "time", time.Unix(req.GetSec(), 0).UTC())
	return &emptypb.Empty{}, nil
}

// maxSeed bounds data mixed into the random generator.
const maxSeed = 64 << 10

// ReseedRandomDev mixes the host's data into the random generator, which it cannot make worse, and reseeds it.
func (a *Agent) ReseedRandomDev(_ context.Context, req *agent.ReseedRandomDevRequest) (*emptypb.Empty, error) {
	if len(req.GetData()) > maxSeed {
		return nil, invalid("%d bytes of seed, at most %d are accepted", len(req.GetData()), maxSeed)
	}
	f, err := os.OpenFile("/dev/random", os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("reseeding: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(req.GetData()); err != nil {
		return nil, fmt.Errorf("reseeding: %w", err)
	}
	const rndReseedCRNG = 0x5207
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return nil, fmt.Errorf("reseeding: %w", errno)
	}
	return &emptypb.Empty{}, nil
}

// OnlineCPUMem brings processors and memory that the host has added into use. The number is of all processors that shall be
// online then; those that have not appeared yet are waited for. Memory that the kernel takes into use by itself needs nothing.
func (a *Agent) OnlineCPUMem(ctx context.Context, req *agent.OnlineCPUMemRequest) (*emptypb.Empty, error) {
	const sys = "/sys/devices/system"
	const maxCPUs = 8192
	if req.GetNbCpus() > maxCPUs {
		return nil, invalid("%d processors, at most %d are accepted", req.GetNbCpus(), maxCPUs)
	}
	if n := int(req.GetNbCpus()); n > 0 {
		online := 0
		err := a.cfg.Devices.Wait(ctx, "processors", func() (bool, error) {
			var err error
			online, err = processorsOnline(filepath.Join(sys, "cpu"), n)
			return online >= n, err
		})
		if err != nil {
			return nil, fmt.Errorf("%d of %d processors are online: %w", online, n, err)
		}
	}
	if !req.GetCpuOnly() {
		if _, err := setOnline(filepath.Join(sys, "memory"), "memory", -1); err != nil {
			return nil, err
		}
	}
	return &emptypb.Empty{}, nil
}

// processorsOnline switches on offline processors until there are n, and returns how many are online. One whose directory has no
// switch, as the first has not, is always online.
func processorsOnline(dir string, n int) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("listing %s: %w", dir, err)
	}
	online := 0
	for _, e := range entries {
		if _, err := strconv.ParseUint(strings.TrimPrefix(e.Name(), "cpu"), 10, 31); err != nil {
			continue
		}
		state, err := os.ReadFile(filepath.Join(dir, e.Name(), "online"))
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(state)) != "0" {
			online++
		}
	}
	if online >= n {
		return online, nil
	}
	more, err := setOnline(dir, "cpu", n-online)
	return online + more, err
}

// setOnline switches on up to limit offline units (all for a negative limit) and returns how many it switched on.
func setOnline(dir, prefix string, limit int) (int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("listing %s: %w", dir, err)
	}
	done := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(strings.TrimPrefix(e.Name(), prefix)); err != nil || done == limit {
			continue
		}
		file := filepath.Join(dir, e.Name(), "online")
		state, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(state)) != "0" {
			continue
		}
		if err := os.WriteFile(file, []byte("1"), 0); err != nil {
			return done, fmt.Errorf("bringing %s online: %w", e.Name(), err)
		}
		done++
	}
	return done, nil
}

// GetVolumeStats measures the file system of a volume of the pod.
func (a *Agent) GetVolumeStats(_ context.Context, req *agent.VolumeStatsRequest) (*agent.VolumeStatsResponse, error) {
	root := a.cfg.Layout.Root
	fd, err := container.OpenBeneath(filepath.Clean(req.GetVolumeGuestPath()), []string{filepath.Join(root, "shared/containers"), filepath.Join(root, "sandbox")})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return nil, fmt.Errorf("measuring %s: %w", req.GetVolumeGuestPath(), err)
	}
	block := uint64(st.Bsize)
	return &agent.VolumeStatsResponse{
		Usage: []*agent.VolumeUsage{
			{Unit: agent.VolumeUsage_BYTES, Total: st.Blocks * block, Available: st.Bfree * block, Used: (st.Blocks - st.Bfree) * block},
			{Unit: agent.VolumeUsage_INODES, Total: st.Files, Available: st.Ffree, Used: st.Files - st.Ffree},
		},
		VolumeCondition: &agent.VolumeCondition{Message: "OK"},
	}, nil
}

// maxDiagnostic bounds what a container may leave as its last words.
const maxDiagnostic = 4096

// GetDiagnosticData returns a container's termination message.
func (a *Agent) GetDiagnosticData(_ context.Context, req *agent.GetDiagnosticDataRequest) (*agent.GetDiagnosticDataResponse, error) {
	if req.GetLogType() != "termination_log" {
		return nil, invalid("log type %.60q", req.GetLogType())
	}
	a.mu.Lock()
	e := a.containers[req.GetContainerId()]
	a.mu.Unlock()
	if e == nil || e.c == nil {
		return nil, errNoContainer
	}
	dest := e.oci.GetAnnotations()["io.kubernetes.container.terminationMessagePath"]
	i := slices.IndexFunc(e.oci.GetMounts(), func(m *agent.Mount) bool { return dest != "" && m.GetDestination() == dest })
	if i < 0 {
		return &agent.GetDiagnosticDataResponse{}, nil
	}
	fd, err := container.OpenPlain(filepath.Clean(e.oci.GetMounts()[i].GetSource()), []string{filepath.Join(a.cfg.Layout.Root, "shared/containers")})
	if errors.Is(err, fs.ErrNotExist) {
		return &agent.GetDiagnosticDataResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &agent.GetDiagnosticDataResponse{}, nil
	}
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, fmt.Errorf("reading the termination message: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDiagnostic))
	if err != nil {
		return nil, fmt.Errorf("reading the termination message: %w", err)
	}
	return &agent.GetDiagnosticDataResponse{Data: strings.ToValidUTF8(string(text), string(utf8.RuneError))}, nil
}
