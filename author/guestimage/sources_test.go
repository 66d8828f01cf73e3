package guestimage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMachineMirror(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"nothing":       {nil, defaultMirror},
		"one line":      {map[string]string{"sources.list": "# deb http://old/debian x main\ndeb [arch=amd64 signed-by=/k] http://m.example/debian bookworm main # c\n"}, "http://m.example/debian"},
		"stanza":        {map[string]string{"sources.list.d/debian.sources": "Types: deb deb-src\nURIs: https://m.example/debian/\nSuites: x\n"}, "https://m.example/debian/"},
		"security only": {map[string]string{"sources.list": "deb http://m.example/debian-security bookworm-security main\n"}, defaultMirror},
		"other vendor":  {map[string]string{"sources.list": "deb http://m.example/ubuntu noble main\n"}, defaultMirror},
		"disabled":      {map[string]string{"sources.list.d/a.sources": "Enabled: no\nTypes: deb\nURIs: http://m.example/debian\n"}, defaultMirror},
		"local path":    {map[string]string{"sources.list": "deb file:/srv/debian bookworm main\n"}, defaultMirror},
		"sources only":  {map[string]string{"sources.list": "deb-src http://m.example/debian bookworm main\n"}, defaultMirror},
		"ignored file":  {map[string]string{"sources.list.d/a.list.save": "deb http://m.example/debian bookworm main\n"}, defaultMirror},
	} {
		t.Run(name, func(t *testing.T) {
			etc := t.TempDir()
			if err := os.Mkdir(filepath.Join(etc, "sources.list.d"), 0o755); err != nil {
				t.Fatal(err)
			}
			for f, text := range c.files {
				if err := os.WriteFile(filepath.Join(etc, f), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := machineMirror(etc); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestCloudKernel(t *testing.T) {
	for in, want := range map[string]string{
		"linux-image-6.12.95+deb12-cloud-amd64 (= 6.12.95-1~bpo12+1)": "linux-image-6.12.95+deb12-cloud-amd64",
		"foo, linux-image-6.1.0-50-cloud-amd64, bar":                  "linux-image-6.1.0-50-cloud-amd64",
		"linux-image-6.12.95+deb12-cloud-amd64-dbg":                   "",
		"linux-image-6.12.95+deb12-cloud-amd64-unsigned":              "",
		"linux-image-cloud-amd64":                                     "",
		"linux-image-6.12.95+deb12-amd64":                             "",
	} {
		if got := cloudKernel(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	if got := kernelSeries("linux-image-6.12.95+deb12-cloud-amd64"); got != "6.12" {
		t.Errorf("series %q", got)
	}
	if inSeries("linux-image-6.1.0-50-cloud-amd64", "6.12") || inSeries("linux-image-6.120.1-cloud-amd64", "6.12") {
		t.Error("a kernel of another series counts")
	}
}

// TestAptConfig keeps the signature check strict whatever the machine says.
func TestAptConfig(t *testing.T) {
	var kept []string
	for _, line := range []string{
		`Acquire::http::Proxy "http://p:3128";`,
		`Acquire::http::Proxy::deb.example.org "DIRECT";`,
		`Acquire::Check-Valid-Until "false";`,
		`Acquire::AllowInsecureRepositories "true";`,
		`Acquire::AllowWeakRepositories "1";`,
		`Acquire::gpgv::Options:: "--ignore-time-conflict";`,
		`Acquire::http::Proxy "x"; APT::Get::AllowUnauthenticated "true";`,
		`Acquire::https::Verify-Peer "false";`,
	} {
		if reTransport.MatchString(line) {
			kept = append(kept, line)
		}
	}
	if len(kept) != 3 {
		t.Errorf("taken over from the machine: %q", kept)
	}
	conf := string((&apt{root: "/r"}).config(kept))
	for _, want := range []string{
		`Dir::Etc::parts "/dev/null";`, `Dir::Etc::sourceparts "/r/parts";`, `Dir::State "/r/state";`,
		`APT::Get::AllowUnauthenticated "false";`, `Acquire::AllowInsecureRepositories "false";`,
		`Acquire::AllowWeakRepositories "false";`, `Acquire::AllowDowngradeToInsecureRepositories "false";`,
	} {
		if !strings.Contains(conf, want) {
			t.Errorf("configuration lacks %s", want)
		}
	}
}

func FuzzParseStanzas(f *testing.F) {
	f.Add([]byte("Package: a\nDepends: b,\n c\n\n# x\nPackage: d\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		parseStanzas(data)
		oneLineURIs(data)
	})
}
