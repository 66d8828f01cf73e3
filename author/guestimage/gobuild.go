package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
)

// goSettings are variables that change what the Go tool builds; they are
// fixed here so that a user's environment cannot leak into the image.
var goSettings = []string{
	"GOFLAGS=", "GOWORK=off", "GOTOOLCHAIN=local", "GOEXPERIMENT=", "GODEBUG=", "GOFIPS140=off",
	"GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "LC_ALL=C",
}

// cgoUnset are variables the C compiler or cgo would listen to.
var cgoUnset = []string{
	"CFLAGS", "CPPFLAGS", "CXXFLAGS", "LDFLAGS", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH",
	"CGO_CPPFLAGS", "CGO_CXXFLAGS", "CGO_FFLAGS", "SOURCE_DATE_EPOCH", "GOGCCFLAGS", "PKG_CONFIG_PATH",
}

// guestPackage is the import path of the guest binary below the module root.
const guestPackage = "./cmd/cloister-guest"

func goCommand(dir string, env ...string) command {
	return command{dir: dir, env: append(append([]string{}, goSettings...), env...), drop: cgoUnset}
}

// goVersion is what the `go` on the path says it is.
func goVersion(ctx context.Context, dir string) (string, error) {
	out, err := goCommand(dir).run(ctx, "go", "env", "GOVERSION")
	if err != nil {
		return "", fmt.Errorf("asking for the Go version: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// guestFlags are the compiler's. In an initrd every byte of the binary is guest memory, so that size goes before speed:
// nothing is inlined except in the decompressors, functions are aligned to 4 bytes, and HTTP/2, which neither a
// registry nor a broker needs, is left out.
func guestFlags() []string {
	return []string{
		"-trimpath", "-buildvcs=false", "-mod=readonly", "-tags=nethttpomithttp2",
		"-gcflags=all=-l", "-gcflags=compress/...=", "-gcflags=github.com/klauspost/...=",
		"-ldflags=-s -w -buildid= -funcalign=4",
	}
}

// buildGuest builds the guest binary of the module in repo.
func buildGuest(ctx context.Context, repo, out string) error {
	_, err := goCommand(repo, "CGO_ENABLED=0").run(ctx, "go",
		append(append([]string{"build"}, guestFlags()...), "-o", out, guestPackage)...)
	if err != nil {
		return fmt.Errorf("building the guest binary: %w", err)
	}
	return nil
}

// listedPackage is what of `go list -json` decides over a build.
type listedPackage struct {
	ImportPath string
	Dir        string
	Standard   bool
	GoFiles    []string
	SFiles     []string
	HFiles     []string
	EmbedFiles []string
	Module     *struct {
		Path, Version, GoVersion, Sum string
		Main                          bool
		Replace                       *struct{ Path, Version, Dir string }
	}
}

// guestSourceKey hashes everything the guest binary is built from: the files
// of our own packages, and the versions of all modules with their go.sum
// hashes.
func guestSourceKey(ctx context.Context, repo string) (string, error) {
	out, err := goCommand(repo, "CGO_ENABLED=0").run(ctx, "go", "list", "-deps", "-mod=readonly",
		"-json=ImportPath,Dir,Standard,GoFiles,SFiles,HFiles,EmbedFiles,Module", guestPackage)
	if err != nil {
		return "", fmt.Errorf("listing the guest's sources: %w", err)
	}
	h := sha256.New()
	mods := map[string]bool{}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p listedPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return "", fmt.Errorf("listing the guest's sources: %w", err)
		}
		if p.Standard || p.Module == nil {
			continue
		}
		if !p.Module.Main && p.Module.Replace == nil {
			mods[p.Module.Path+" "+p.Module.Version+" "+p.Module.Sum] = true
			continue
		}
		fmt.Fprintf(h, "package %s go%s\n", p.ImportPath, p.Module.GoVersion)
		for _, list := range [][]string{p.GoFiles, p.SFiles, p.HFiles, p.EmbedFiles} {
			for _, name := range list {
				sum, size, err := fileSHA256(filepath.Join(p.Dir, name))
				if err != nil {
					return "", fmt.Errorf("hashing the guest's sources: %w", err)
				}
				fmt.Fprintf(h, "%s %d %s\n", name, size, sum)
			}
		}
	}
	names := make([]string, 0, len(mods))
	for m := range mods {
		names = append(names, m)
	}
	sort.Strings(names)
	fmt.Fprintf(h, "%s\n", strings.Join(names, "\n"))
	return hex.EncodeToString(h.Sum(nil)), nil
}

const runcModule = "github.com/opencontainers/runc"

// fetchedModule is what `go mod download -json` says.
type fetchedModule struct {
	Dir, Sum, Error string
}

// fetchRunc downloads the runc module; the Go tool checks it against the
// checksum database as for any module.
func fetchRunc(ctx context.Context, version string) (fetchedModule, error) {
	if !reModVersion.MatchString(version) {
		return fetchedModule{}, fmt.Errorf("runc version %q does not look like one", version)
	}
	tmp, err := emptyModule()
	if err != nil {
		return fetchedModule{}, err
	}
	defer os.RemoveAll(tmp)
	out, err := goCommand(tmp).run(ctx, "go", "mod", "download", "-json", runcModule+"@"+version)
	var m fetchedModule
	if jerr := json.Unmarshal(out, &m); err == nil && jerr != nil {
		err = jerr
	}
	if err == nil && m.Error != "" {
		err = errors.New(m.Error)
	}
	if err != nil {
		return m, fmt.Errorf("fetching %s %s: %w", runcModule, version, err)
	}
	return m, nil
}

// emptyModule gives the Go tool a module to stand in that is nobody's.
func emptyModule() (string, error) {
	tmp, err := os.MkdirTemp("", "cloister-runc-")
	if err != nil {
		return "", fmt.Errorf("preparing the runc build: %w", err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "go.mod"), []byte("module runcbuild\n"), 0o644); err != nil {
		os.RemoveAll(tmp)
		return "", fmt.Errorf("preparing the runc build: %w", err)
	}
	return tmp, nil
}

// runcTags leave out what needs more libraries.
const runcTags = "seccomp netgo osusergo"

// buildRunc builds runc from its module, as the main module, so that its own
// go.sum is what its dependencies are checked against.
func buildRunc(ctx context.Context, lock RuncLock, out string) error {
	m, err := fetchRunc(ctx, lock.Version)
	if err != nil {
		return err
	}
	if m.Sum != lock.Sum {
		return fmt.Errorf("runc module %s has hash %s, the lock expects %s", lock.Version, m.Sum, lock.Sum)
	}
	_, err = goCommand(m.Dir, "CGO_ENABLED=1", "CC=gcc", "CGO_CFLAGS=-O2", "CGO_LDFLAGS=").run(ctx, "go", "build",
		"-trimpath", "-buildvcs=false", "-mod=readonly", "-tags", runcTags,
		"-ldflags", `-s -w -buildid= -linkmode=external -extldflags "-static -Wl,--build-id=none"`,
		"-o", out, ".")
	if err != nil {
		return fmt.Errorf("building runc (needs gcc and libseccomp-dev; hint: apt-get install gcc libc6-dev libseccomp-dev pkg-config): %w", err)
	}
	return nil
}

// cToolchain names the C side of the runc build. Two machines whose images
// should be identical need the same.
func cToolchain(ctx context.Context) (string, error) {
	gcc, err := command{env: []string{"LC_ALL=C"}}.run(ctx, "gcc", "--version")
	if err != nil {
		return "", fmt.Errorf("runc needs a C compiler (hint: apt-get install gcc libc6-dev): %w", err)
	}
	first, _, _ := strings.Cut(string(gcc), "\n")
	seccomp, err := command{}.run(ctx, "pkg-config", "--modversion", "libseccomp")
	if err != nil {
		return "", fmt.Errorf("runc needs libseccomp (hint: apt-get install libseccomp-dev pkg-config): %w", err)
	}
	libs := "libseccomp " + strings.TrimSpace(string(seccomp))
	for _, lib := range []string{"libc.a", "libseccomp.a"} {
		p, err := command{}.run(ctx, "gcc", "-print-file-name="+lib)
		if err != nil {
			return "", err
		}
		sum, _, err := fileSHA256(strings.TrimSpace(string(p)))
		if err != nil {
			return "", fmt.Errorf("static %s is needed for runc (hint: apt-get install libc6-dev libseccomp-dev): %w", lib, err)
		}
		libs += "; " + lib + " " + sum[:16]
	}
	return first + "; " + libs, nil
}

// hostCheck refuses a machine whose tools would make something else.
func hostCheck() error {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return fmt.Errorf("the guest image is built on linux/amd64 only, this is %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	return nil
}
