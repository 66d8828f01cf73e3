package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// TestContainerdConfigMerged: up to 1.7 an imported file replaces the CRI plugin's table, so that it has to hold all of it.
func TestContainerdConfigMerged(t *testing.T) {
	for name, tc := range map[string]struct {
		base string
		want map[string]string // runtime to its type
		err  string
	}{
		"Debian's": {base: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n",
			want: map[string]string{"runc": "io.containerd.runc.v2", "cloister": "io.containerd.cloister.v2"}},
		"empty": {want: map[string]string{"runc": "io.containerd.runc.v2", "cloister": "io.containerd.cloister.v2"}},
		"another default": {base: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"crun\"\n" +
			"[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun]\nruntime_type = \"x\"\n",
			want: map[string]string{"crun": "x", "cloister": "io.containerd.cloister.v2"}},
		"old":     {base: "[plugins.cri]\nx = 1\n", err: "has version 0, want 2"},
		"too new": {base: "version = 3\n", err: "which containerd 1.6 and 1.7 do not know"},
		"broken":  {base: "version = [", err: "reading containerd's configuration"},
		"a value": {base: "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ncontainerd = 3\n", err: "containerd is not a table"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(file, []byte(tc.base), 0o600); err != nil {
				t.Fatal(err)
			}
			text, err := containerdConfig("1.6", 0, file, "", []string{"cloister="})
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("the error is %v, want %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Plugins map[string]struct {
					CNI        map[string]any
					Containerd struct {
						Runtimes map[string]struct {
							Type string `toml:"runtime_type"`
						}
					}
				}
			}
			if err := toml.Unmarshal(text, &got); err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			cri := got.Plugins["io.containerd.grpc.v1.cri"]
			if name == "Debian's" && cri.CNI["bin_dir"] != "/usr/lib/cni" {
				t.Errorf("what was there is lost:\n%s", text)
			}
			if len(cri.Containerd.Runtimes) != len(tc.want) {
				t.Errorf("%d runtimes, want %d:\n%s", len(cri.Containerd.Runtimes), len(tc.want), text)
			}
			for name, kind := range tc.want {
				if cri.Containerd.Runtimes[name].Type != kind {
					t.Errorf("%s is %q, want %q:\n%s", name, cri.Containerd.Runtimes[name].Type, kind, text)
				}
			}
		})
	}
	if _, err := containerdConfig("2", 0, "/etc/containerd/config.toml", "", nil); err == nil {
		t.Error("containerd 2 merges by itself")
	}
}

// TestContainerdConfigSnapshotter: each version is told of the snapshotter in its own way.
func TestContainerdConfigSnapshotter(t *testing.T) {
	for version, want := range map[string]string{
		"1.6": "[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'cloister'\n",
		"1.7": "snapshotter = 'cloister'\n\n[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['cloister-diff', 'walking']\n",
		"2":   "[plugins.'io.containerd.cri.v1.images'.runtime_platforms.cloister]\nsnapshotter = 'cloister'\n",
	} {
		text, err := containerdConfig(version, 0, "", defaultSnapshotterSocket, []string{"cloister="})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), want) || !strings.Contains(string(text), "[proxy_plugins.cloister]\naddress = '/run/cloister/snapshotter.sock'\n") {
			t.Errorf("for %s there is no %q in\n%s", version, want, text)
		}
		if differ := strings.Contains(string(text), "cloister-diff"); differ != (version != "1.6") {
			t.Errorf("for %s the differ is there: %v", version, differ)
		}
	}
	if _, err := containerdConfig("2", 0, "", "a.sock", nil); err == nil {
		t.Error("a relative socket is accepted")
	}
}

// TestContainerdConfigVersions: containerd 2 reads two versions of its configuration, and 2.0 to 2.2 only one of them at a time.
func TestContainerdConfigVersions(t *testing.T) {
	for _, c := range []struct {
		version string
		schema  int
		want    string // empty is an error
	}{
		{"2", 0, "version = 3\n\n[plugins]\n[plugins.'io.containerd.cri.v1.runtime']\n"},
		{"v2.1.9", 2, "version = 2\n\n[plugins]\n[plugins.'io.containerd.grpc.v1.cri']\n"},
		{"1.7.35", 0, "version = 2\n\n[plugins]\n[plugins.'io.containerd.grpc.v1.cri']\n"},
		{"1.7", 3, ""},
		{"2", 4, ""},
		{"1.5", 0, ""},
		{"20.1", 0, ""},
	} {
		text, err := containerdConfig(c.version, c.schema, "", "", []string{"cloister="})
		if (err != nil) != (c.want == "") || !strings.HasPrefix(string(text), c.want) {
			t.Errorf("for %s, version %d: %v\n%s", c.version, c.schema, err, text)
		}
	}
	text, err := containerdConfig("2.0", 2, "", defaultSnapshotterSocket, []string{"cloister="})
	if want := "[plugins.'io.containerd.cri.v1.images'.runtime_platforms.cloister]\n"; err != nil || !strings.Contains(string(text), want) {
		t.Errorf("without %s the image service does not know the snapshotter: %v\n%s", want, err, text)
	}
}

func TestCopyImageKeepsOtherFolders(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "share", "guest")
	if err := os.WriteFile(filepath.Join(from, "vmlinuz"), []byte("k"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := copyImage(from, to); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(to, "vmlinuz")); err != nil || string(text) != "k" {
		t.Errorf("%q, %v", text, err)
	}
	if err := copyImage(from, to); err == nil { // what is there has no manifest: it is no image of ours
		t.Error("a folder with other things was replaced")
	}
	if entries, err := os.ReadDir(filepath.Dir(to)); err != nil || len(entries) != 1 {
		t.Errorf("%v are left, %v", entries, err)
	}
}
