package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/container"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/agent"
)

func bind(dest, source string) container.MountSpec {
	return container.MountSpec{Destination: dest, Type: "bind", Source: source, Options: []string{"rbind", "ro"}}
}

// sealedVolumes is an agent that has got a volume of the kubelet's layout, one of plain files, and files of their own.
func sealedVolumes(t *testing.T) (a *Agent, base string) {
	t.Helper()
	a, base = copier(t)
	a.cfg.Secrets, a.cfg.HubTimeout = fakeSecrets{}, 1e9
	for _, f := range []struct {
		path string
		mode uint32
		data string
	}{
		{"vol", unix.S_IFDIR | 0o751, ""},
		{"vol/..2026", unix.S_IFDIR | 0o750, ""},
		{"vol/..2026/password", unix.S_IFREG | 0o440, "sealed.good\n"},
		{"vol/..2026/user", unix.S_IFREG | 0o644, "admin"},
		{"vol/..data", unix.S_IFLNK | 0o777, "..2026"},
		{"vol/password", unix.S_IFLNK | 0o777, "..data/password"},
		{"vol/outside", unix.S_IFLNK | 0o777, "/etc/passwd"},
		{"plain", unix.S_IFDIR | 0o755, ""},
		{"plain/short", unix.S_IFREG | 0o644, "seal"},
		{"plain/other", unix.S_IFREG | 0o644, "unsealed.good"},
		{"one", unix.S_IFREG | 0o400, "sealed.good"},
		{"c1-hosts", unix.S_IFREG | 0o644, "sealed.by.the.container"},
		{"bad/key", unix.S_IFREG | 0o644, "sealed.bad"},
		{"large/key", unix.S_IFREG | 0o644, sealedPrefix + strings.Repeat("x", maxSealedFile)},
	} {
		if _, err := a.CopyFile(t.Context(), request(base+"/"+f.path, f.mode, f.data)); err != nil {
			t.Fatal(err)
		}
	}
	return a, base
}

func TestUnsealFiles(t *testing.T) {
	a, base := sealedVolumes(t)
	mounts := []container.MountSpec{
		bind("/etc/hosts", base+"/c1-hosts"), bind("/plain", base+"/plain"), bind("/secret", base+"/vol"), bind("/key", base+"/one"),
		{Destination: "/proc", Type: "proc", Source: "proc"}, bind("/shm", filepath.Join(a.cfg.Layout.Root, "sandbox/shm")),
	}
	dir, err := a.unsealFiles(t.Context(), "c1", mounts)
	if err != nil {
		t.Fatal(err)
	}
	if dir != filepath.Join(a.cfg.Layout.Root, "c1/opened") {
		t.Errorf("the copies are in %s", dir)
	}
	for i, want := range []string{base + "/c1-hosts", base + "/plain", dir + "/2", dir + "/3/file", "proc", a.cfg.Layout.Root + "/sandbox/shm"} {
		if mounts[i].Source != want {
			t.Errorf("%s shows %s, expected %s", mounts[i].Destination, mounts[i].Source, want)
		}
	}
	for file, want := range map[string]struct {
		text string
		mode os.FileMode
	}{
		dir + "/2/password":           {"pa=ss", 0o440},
		dir + "/2/..2026/password":    {"pa=ss", 0o440},
		dir + "/2/..data/user":        {"admin", 0o644},
		dir + "/3/file":               {"pa=ss", 0o400},
		base + "/vol/..2026/password": {"sealed.good\n", 0o440}, // the host's keeps what the host has sent
		base + "/one":                 {"sealed.good", 0o400},
	} {
		text, err := os.ReadFile(file)
		info, serr := os.Stat(file)
		if err != nil || serr != nil || string(text) != want.text || info.Mode() != want.mode {
			t.Errorf("%s: got %q, %v, %v, %v, expected %+v", file, text, info, err, serr, want)
		}
	}
	for name, want := range map[string]os.FileMode{"/2": 0o751 | os.ModeDir, "/2/..2026": 0o750 | os.ModeDir} {
		if info, err := os.Stat(dir + name); err != nil || info.Mode() != want {
			t.Errorf("%s: got %v, %v, expected %v", name, info, err, want)
		}
	}
	if to, err := os.Readlink(dir + "/2/outside"); err != nil || to != "/etc/passwd" {
		t.Errorf("a link leads to %q, %v", to, err)
	}
	// The secrets go with the container, and the next one of the same id gets its own.
	a.containers["c1"] = &entry{}
	if err := a.dropContainer("c1"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("opened secrets are left: %v", err)
	}
	mounts = []container.MountSpec{bind("/secret", base+"/vol")}
	if _, err := a.unsealFiles(t.Context(), "c1", mounts); err != nil || mounts[0].Source != dir+"/0" {
		t.Errorf("once more: %v, %v", mounts, err)
	}
}

func TestUnsealFilesRefuses(t *testing.T) {
	a, base := sealedVolumes(t)
	for name, tc := range map[string]struct {
		source string
		want   []string
	}{
		"cannot be opened": {base + "/bad", []string{"/x/key", "the broker refused"}},
		"too large":        {base + "/large", []string{"/x/key", "1048583 bytes"}},
		"not there":        {base + "/none", []string{"/x", "no such file"}},
	} {
		_, err := a.unsealFiles(t.Context(), "c1", []container.MountSpec{bind("/x", tc.source)})
		for _, want := range tc.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, expected %q", name, err, want)
			}
		}
		if err != nil && strings.Contains(err.Error(), "sealed.bad") {
			t.Errorf("%s: the error shows the file: %v", name, err)
		}
	}
	budget := openBudget{bytes: 20, files: 10}
	if v, err := a.copySealedVolume(base+"/vol", base, t.TempDir()+"/0", &budget); err != nil || v == nil {
		t.Errorf("within the budget: %v", err)
	}
	for _, budget := range []openBudget{{bytes: 10, files: 10}, {bytes: 20, files: 2}} {
		if _, err := a.copySealedVolume(base+"/vol", base, t.TempDir()+"/0", &budget); err == nil {
			t.Error("a volume beyond the budget was copied")
		}
	}
	a.cfg.Secrets = nil
	if _, err := a.unsealFiles(t.Context(), "c2", []container.MountSpec{bind("/x", base+"/one")}); err == nil || !strings.Contains(err.Error(), "data hub") {
		t.Errorf("without a hub: got %v", err)
	}
	plain := []container.MountSpec{bind("/x", base+"/plain")}
	if _, err := a.unsealFiles(t.Context(), "c2", plain); err != nil || plain[0].Source != base+"/plain" {
		t.Errorf("without a hub, nothing sealed: %v, %v", plain, err)
	}
}

// TestSharedFilesAreNotRead has the file systems of the host's shared directory and of the guest's memory.
func TestSharedFilesAreNotRead(t *testing.T) {
	if copiedIn(&unix.Statfs_t{Type: unix.FUSE_SUPER_MAGIC}) {
		t.Error("files of the host's shared directory are looked through for sealed ones")
	}
	for _, kind := range []int64{unix.TMPFS_MAGIC, unix.RAMFS_MAGIC} {
		if !copiedIn(&unix.Statfs_t{Type: kind}) {
			t.Errorf("files in memory (%#x) are left out", kind)
		}
	}
}

// unsealGate refuses to have secrets opened, and remembers what it was asked about.
type unsealGate struct {
	recordingGate
	file     gate.SealedFile
	variable string
}

func (g *unsealGate) AllowUnsealFile(_ context.Context, f gate.SealedFile) error {
	g.file = f
	return &gate.DeniedError{Rule: "UnsealFileRequest"}
}

func (g *unsealGate) AllowUnsealVariable(_ context.Context, id, variable string) error {
	g.variable = id + " " + variable
	return &gate.DeniedError{Rule: "UnsealVariableRequest"}
}

// opened counts the secrets that it was asked to open.
type opened struct{ count int }

func (o *opened) UnsealSecret(context.Context, []byte) ([]byte, error) {
	o.count++
	return []byte("secret"), nil
}

// TestPolicyDecidesAboutSealedTexts has a host that brings a sealed secret to where the policy does not expect it.
func TestPolicyDecidesAboutSealedTexts(t *testing.T) {
	a, base := sealedVolumes(t)
	g, secrets := &unsealGate{}, &opened{}
	a.cfg.Gate, a.cfg.Secrets = g, secrets
	sum := func(text string) string {
		s := sha256.Sum256([]byte(text))
		return hex.EncodeToString(s[:])
	}
	for source, want := range map[string]gate.SealedFile{
		"/one": {ContainerID: "c1", Destination: "/x", Path: base + "/one", SHA256: sum("sealed.good")},
		"/vol": {ContainerID: "c1", Destination: "/x", Name: "..2026/password", Path: base + "/vol/..2026/password", SHA256: sum("sealed.good\n")},
	} {
		mounts := []container.MountSpec{bind("/x", base+source)}
		if _, err := a.unsealFiles(t.Context(), "c1", mounts); err == nil || g.file != want {
			t.Errorf("%s: %v, asked about %+v, expected %+v", source, err, g.file, want)
		}
	}
	p := &agent.Process{Env: []string{"A=plain", "HOSTNAME=sealed.good"}}
	if err := a.unsealEnv(t.Context(), "c1", p); err == nil || g.variable != "c1 HOSTNAME=sealed.good" || p.Env[1] != "HOSTNAME=sealed.good" {
		t.Errorf("a variable: %v, asked about %q, %q", err, g.variable, p.Env)
	}
	if secrets.count > 0 {
		t.Errorf("%d secrets were opened", secrets.count)
	}
}
