package containerd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// The versions that are named in a short form.
const (
	V16 = "1.6" // the distribution's package
	V2  = "2"   // the release of tools/go.mod
)

// VersionsVariable names the environment variable with the versions that suites run on.
const VersionsVariable = "CLOISTER_CONTAINERD_VERSIONS"

// Versions are those that a suite runs on: the ones that CLOISTER_CONTAINERD_VERSIONS lists, separated by commas, or else the standard ones
// of the suite. A release such as 2.1.9 is built from the Go module proxy.
func Versions(t testing.TB, standard ...string) []string {
	t.Helper()
	list, err := versions(os.Getenv(VersionsVariable), standard)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// VersionsFrom is Versions(t, V2) without those of older series: for what they cannot do. It skips the test when none is left.
func VersionsFrom(t testing.TB, series string) []string {
	t.Helper()
	var list []string
	for _, v := range Versions(t, V2) {
		if Series(v) >= series {
			list = append(list, v)
		}
	}
	if len(list) == 0 {
		needs.Optional(t, "%s names no containerd from %s on, which this test needs", VersionsVariable, series)
	}
	return list
}

var release = regexp.MustCompile(`^(1\.[67]|2\.[0-9]{1,3})\.[0-9]{1,3}$`)

func versions(list string, standard []string) ([]string, error) {
	if list == "" {
		return standard, nil
	}
	var out []string
	for _, v := range strings.Split(list, ",") {
		if v = strings.TrimSpace(v); v != V16 && v != V2 && !release.MatchString(v) {
			return nil, fmt.Errorf("%s has %q, want %s (the distribution's package), %s (the release of test/containerd/tools) or a release from 1.6 on, such as 2.1.9",
				VersionsVariable, v, V16, V2)
		}
		out = append(out, v)
	}
	return out, nil
}

// Series is what `cloister config containerd --for` takes for a version, and what decides about its configuration: 1.6, 1.7 or 2.
func Series(version string) string {
	if strings.HasPrefix(version, "1.") {
		return version[:3]
	}
	return V2
}

// OneConfigVersion says that all files of this containerd's configuration have to be of one version: 2.0 to 2.2 take the version of the last
// file for that of all, and do not see the sections of the CRI plugin in the others. Newer ones bring each file to the newest version first.
func OneConfigVersion(version string) bool {
	return strings.HasPrefix(version, "2.0.") || strings.HasPrefix(version, "2.1.") || strings.HasPrefix(version, "2.2.")
}

// Binary is the program of a version.
func Binary(t testing.TB, version string) string {
	return filepath.Join(binaries(t, version), "containerd")
}

// binaries is the folder with containerd, ctr and runc's shim of a version.
func binaries(t testing.TB, version string) string {
	t.Helper()
	switch version {
	case V16:
		return "/usr/bin"
	case V2:
		return current(t)
	}
	if !release.MatchString(version) {
		t.Fatalf("%q is no version of containerd that the tests know", version)
	}
	return cached(t, version+"-"+runtime.Version(), func(dir string) error { return buildRelease(t, version, dir) })
}

// buildRelease builds a release with the dependencies that it names itself, as `go install` would if it took modules with replacements.
func buildRelease(t testing.TB, version, dir string) error {
	module := "github.com/containerd/containerd"
	if Series(version) == V2 {
		module += "/v2"
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), "module-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	get := []string{"get", "-tool"}
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		get = append(get, module+"/cmd/"+program+"@v"+version)
	}
	for _, args := range [][]string{{"mod", "init", "example.invalid/containerd"}, get, {"build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/", "tool"}} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir = work
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}
