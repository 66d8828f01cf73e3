package guestimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// debianKeyring holds the keys the distribution signs its archives with.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// metaPackage always depends on the newest cloud kernel of a suite.
const metaPackage = "linux-image-cloud-amd64"

// errNotOffered means that the mirror no longer has what was asked for.
var errNotOffered = errors.New("no longer offered by the mirror")

// apt drives apt-get for one suite with a private configuration. Nothing of
// the machine's apt is read but its proxy and transport settings, and nothing
// of it is written.
type apt struct {
	root    string // private state
	suite   string
	mirror  string
	keyring string
	updated bool
}

// kernelPackage is one offer of a suite.
type kernelPackage struct {
	Package, Version, Suite, SHA256 string
}

func newApt(ctx context.Context, root, mirror, suite, keyring string) (*apt, error) {
	if !reSuite.MatchString(suite) {
		return nil, fmt.Errorf("suite %q does not look like one", suite)
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("the distribution's signing keys are needed to check the kernel package: %w (hint: apt-get install debian-archive-keyring)", err)
	}
	a := &apt{root: filepath.Join(root, suite), suite: suite, mirror: mirror, keyring: keyring}
	for _, d := range []string{"parts", "state/lists/partial", "cache/archives/partial", "log"} {
		if err := os.MkdirAll(filepath.Join(a.root, d), 0o755); err != nil {
			return nil, fmt.Errorf("preparing private apt state: %w", err)
		}
	}
	inherited, err := transportSettings(ctx)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		"status":              nil,
		"parts/guest.sources": aptSource(mirror, suite, keyring),
		"apt.conf":            a.config(inherited),
	}
	for name, data := range files {
		if err := writeFileAtomic(filepath.Join(a.root, name), data, 0o644); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// config is the whole configuration apt sees: the machine's own files and the
// hooks in them are left out, unsigned or weakly signed archives are refused
// whatever the machine allows.
func (a *apt) config(inherited []string) []byte {
	p := func(s string) string { return filepath.Join(a.root, s) }
	lines := []string{
		`Dir::Etc::main "/dev/null";`,
		`Dir::Etc::parts "/dev/null";`,
		`Dir::Etc::sourcelist "/dev/null";`,
		`Dir::Etc::preferences "/dev/null";`,
		`Dir::Etc::preferencesparts "/dev/null";`,
		`Dir::Etc::trusted "/dev/null";`,
		`Dir::Etc::trustedparts "/dev/null";`,
		fmt.Sprintf("Dir::Etc::sourceparts %q;", p("parts")),
		fmt.Sprintf("Dir::State %q;", p("state")),
		fmt.Sprintf("Dir::State::status %q;", p("status")),
		fmt.Sprintf("Dir::Cache %q;", p("cache")),
		fmt.Sprintf("Dir::Log %q;", p("log")),
		`APT::Sandbox::User "";`,
		`APT::Architecture "amd64";`,
		`APT::Architectures { "amd64"; };`,
		`APT::Get::AllowUnauthenticated "false";`,
		`Acquire::AllowInsecureRepositories "false";`,
		`Acquire::AllowWeakRepositories "false";`,
		`Acquire::AllowDowngradeToInsecureRepositories "false";`,
		`Acquire::Languages "none";`,
		`Acquire::Retries "3";`,
		`Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";`,
	}
	lines = append(lines, inherited...)
	return []byte(strings.Join(lines, "\n") + "\n")
}

// reTransport are the settings taken over from the machine: how to reach a
// mirror, and whether a mirror frozen in time is accepted there. None of them
// touches signatures.
var reTransport = regexp.MustCompile(`^Acquire::((http|https)::(Proxy|Proxy-Auto-Detect|Proxy::[A-Za-z0-9.:-]+|Timeout|CAInfo|User-Agent)|Check-Valid-Until|Check-Date|ForceIPv4|ForceIPv6) "[^"\n]*";$`)

func transportSettings(ctx context.Context) ([]string, error) {
	out, err := command{}.run(ctx, "apt-config", "dump", "Acquire")
	if err != nil {
		return nil, fmt.Errorf("reading the machine's apt proxy settings: %w", err)
	}
	var keep []string
	for _, line := range strings.Split(string(out), "\n") {
		if line = strings.TrimSpace(line); reTransport.MatchString(line) {
			keep = append(keep, line)
		}
	}
	return keep, nil
}

func (a *apt) command() command {
	return command{
		dir: filepath.Join(a.root, "cache"),
		env: []string{"APT_CONFIG=" + filepath.Join(a.root, "apt.conf"), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"},
	}
}

// update fetches the suite's index once per build.
func (a *apt) update(ctx context.Context) error {
	if a.updated {
		return nil
	}
	// An index that could not be fetched or checked is an
	// error, where apt-get alone would warn and go on with an old one.
	if _, err := a.command().run(ctx, "apt-get", "update", "--error-on=any", "-q"); err != nil {
		return fmt.Errorf("fetching the package index of %s from %s: %w", a.suite, a.mirror, err)
	}
	a.updated = true
	return nil
}

// offers lists the versions of a package, from the index that apt has checked.
func (a *apt) offers(ctx context.Context, pkg string) ([]kernelPackage, []map[string]string, error) {
	out, err := a.command().run(ctx, "apt-cache", "show", "--", pkg)
	if err != nil {
		if strings.Contains(err.Error(), "No packages found") {
			return nil, nil, nil
		}
		return nil, nil, fmt.Errorf("listing %s in %s: %w", pkg, a.suite, err)
	}
	var list []kernelPackage
	var raw []map[string]string
	for _, st := range parseStanzas(out) {
		if st["Package"] != pkg {
			continue
		}
		list = append(list, kernelPackage{Package: pkg, Version: st["Version"], Suite: a.suite, SHA256: st["SHA256"]})
		raw = append(raw, st)
	}
	return list, raw, nil
}

// newest finds the newest cloud kernel of a series: what the meta package
// depends on, or, when that has moved on to another series, the highest
// version still there. An empty series takes what the meta package says.
func (a *apt) newest(ctx context.Context, series string) (kernelPackage, error) {
	if err := a.update(ctx); err != nil {
		return kernelPackage{}, err
	}
	_, raw, err := a.offers(ctx, metaPackage)
	if err != nil {
		return kernelPackage{}, err
	}
	var names []string
	for _, st := range raw {
		if name := cloudKernel(st["Depends"]); name != "" && inSeries(name, series) {
			names = append(names, name)
		}
	}
	if len(names) == 0 && series != "" {
		out, err := a.command().run(ctx, "apt-cache", "pkgnames", "linux-image-"+series+".")
		if err != nil {
			return kernelPackage{}, fmt.Errorf("listing kernels in %s: %w", a.suite, err)
		}
		for _, name := range strings.Fields(string(out)) {
			if cloudKernel(name) == name {
				names = append(names, name)
			}
		}
	}
	var best kernelPackage
	for _, name := range names {
		list, _, err := a.offers(ctx, name)
		if err != nil {
			return kernelPackage{}, err
		}
		for _, k := range list {
			if best.Version != "" {
				newer, err := versionGreater(ctx, k.Version, best.Version)
				if err != nil {
					return kernelPackage{}, err
				}
				if !newer {
					continue
				}
			}
			best = k
		}
	}
	if best.Version == "" {
		return kernelPackage{}, fmt.Errorf("a %s cloud kernel in %s: %w", series, a.suite, errNotOffered)
	}
	return best, nil
}

var reCloudKernel = regexp.MustCompile(`(?:^|[ ,|])(linux-image-[0-9][a-z0-9.+~-]*-cloud-amd64)(?:$|[ ,|(])`)

// cloudKernel takes the package name out of a Depends field or a plain name.
func cloudKernel(depends string) string {
	m := reCloudKernel.FindStringSubmatch(depends)
	if m == nil || !rePackage.MatchString(m[1]) {
		return ""
	}
	return m[1]
}

func inSeries(pkg, series string) bool {
	return series == "" || strings.HasPrefix(pkg, "linux-image-"+series+".")
}

// kernelSeries is the upstream series of a package: 6.12 of
// linux-image-6.12.95+deb12-cloud-amd64.
func kernelSeries(pkg string) string {
	parts := strings.SplitN(strings.TrimPrefix(pkg, "linux-image-"), ".", 3)
	if len(parts) < 3 {
		return ""
	}
	return parts[0] + "." + parts[1]
}

func versionGreater(ctx context.Context, a, b string) (bool, error) {
	if !reVersion.MatchString(a) || !reVersion.MatchString(b) {
		return false, fmt.Errorf("comparing package versions %q and %q: not versions", a, b)
	}
	if a == b {
		return false, nil
	}
	_, err := command{}.run(ctx, "dpkg", "--compare-versions", a, "gt", b)
	if err == nil {
		return true, nil
	}
	if strings.Contains(err.Error(), "exit status 1") {
		return false, nil
	}
	return false, err
}

// download fetches exactly this package into dir; apt checks it against the
// signed index.
func (a *apt) download(ctx context.Context, k kernelPackage, dir string) (string, error) {
	if err := a.update(ctx); err != nil {
		return "", err
	}
	list, _, err := a.offers(ctx, k.Package)
	if err != nil {
		return "", err
	}
	found := false
	for _, o := range list {
		found = found || o.Version == k.Version
	}
	if !found {
		return "", fmt.Errorf("kernel package %s %s in %s: %w", k.Package, k.Version, a.suite, errNotOffered)
	}
	tmp, err := os.MkdirTemp(dir, ".download-*")
	if err != nil {
		return "", fmt.Errorf("making room for the kernel package: %w", err)
	}
	c := a.command()
	c.dir = tmp
	if _, err := c.run(ctx, "apt-get", "download", "-q", k.Package+"="+k.Version); err != nil {
		os.RemoveAll(tmp)
		return "", fmt.Errorf("downloading %s %s: %w", k.Package, k.Version, err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		os.RemoveAll(tmp)
		return "", fmt.Errorf("downloading %s %s: apt-get left %d packages, expected 1", k.Package, k.Version, len(debs))
	}
	return debs[0], nil
}
