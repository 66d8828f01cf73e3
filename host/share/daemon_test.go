package share

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

func TestArguments(t *testing.T) {
	defaults := []string{"--thread-pool-size=1", "--announce-submounts"}
	for _, c := range []struct {
		kind  kind
		cache string
		extra []string
		want  string
	}{
		{kindRust, "", defaults, "--fd=3 --shared-dir=/d --cache=auto --sandbox=namespace --xattr --thread-pool-size=1 --announce-submounts"},
		{kindRust, "metadata", []string{"-o", "announce_submounts,posix_acl"},
			"--fd=3 --shared-dir=/d --cache=metadata --sandbox=namespace --xattr --announce-submounts --posix-acl"},
		{kindC, "never", defaults, "--fd=3 -f -o source=/d -o cache=none -o sandbox=namespace -o xattr --thread-pool-size=1 -o announce_submounts"},
		{kindC, "metadata", []string{"-o timeout=3", "--xattr"}, "--fd=3 -f -o source=/d -o cache=auto -o sandbox=namespace -o xattr -o timeout=3"},
	} {
		got, err := arguments(c.kind, "/d", c.cache, c.extra)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%v %v: %q, %v", c.kind, c.extra, got, err)
		}
	}
	for _, bad := range [][]string{{"--shared-dir=/"}, {"-o", "source=/"}, {"-o", "xattr,sandbox=none"}, {"--socket_path=x"}, {"x"}, {"--"}, {"-o", "modcaps=+sys_admin"}} {
		if got, err := arguments(kindRust, "/d", "", bad); err == nil {
			t.Errorf("%v became %v", bad, got)
		}
	}
	if _, err := arguments(kindC, "/d", "sometimes", nil); err == nil {
		t.Error("an unknown cache was taken")
	}
	if _, err := arguments(kindC, "/d", "", []string{"--inode-file-handles=never"}); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("an argument of the other program: %v", err)
	}
}

func TestParseMounts(t *testing.T) {
	list := `36 35 98:0 /x /run/a\040b rw - ext4 /dev/x rw
37 36 98:0 /x /run/a\040b/c\134d rw shared:1 - ext4 /dev/x rw
38 36 98:0 /x /run/a\040bc rw - ext4 /dev/x rw
broken
`
	got, err := parseMounts(strings.NewReader(list), "/run/a b")
	if err != nil || !slices.Equal(got, []string{"/run/a b", `/run/a b/c\d`}) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestShorten(t *testing.T) {
	dir, short := shorten("index=off,lowerdir=/a/b/1/fs:/a/b/2/fs,upperdir=/u")
	if dir != "/a/b" || short != "index=off,lowerdir=1/fs:2/fs,upperdir=/u" {
		t.Errorf("%q %q", dir, short)
	}
	for _, same := range []string{"lowerdir=/a:/b", "x", "lowerdir=a:b", `lowerdir=/a/b\:c:/a/d`} {
		if dir, short := shorten(same); dir != "" || short != same {
			t.Errorf("%q: %q %q", same, dir, short)
		}
	}
}

func TestExamine(t *testing.T) {
	for text, want := range map[string]kind{
		"virtiofsd 1.10.1": kindRust,
		"virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c) 2003-2022 Fabrice Bellard and the QEMU Project developers": kindC,
		"rsync 3": -1,
		"":        -1,
	} {
		program := filepath.Join(t.TempDir(), "virtiofsd")
		if err := os.WriteFile(program, []byte("#!/bin/sh\ncat <<'E'\n"+text+"\nE\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		got, err := examine(t.Context(), program)
		if (err == nil) != (want >= 0) || err == nil && got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := Find("/no/such/virtiofsd"); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("a missing program: %v", err)
	}
}

func BenchmarkStart(b *testing.B) {
	needs.Root(b, "mounts")
	for b.Loop() {
		s, err := Start(b.Context(), Config{Dir: b.TempDir() + "/share"})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// TestStartedTellsOfChildren has a virtiofsd that has forked before it could be moved anywhere.
func TestStartedTellsOfChildren(t *testing.T) {
	needRoot(t)
	program := filepath.Join(t.TempDir(), "virtiofsd")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n[ \"$1\" = --version ] && echo virtiofsd 1.0 && exit\nsleep 600 &\nwait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var told []int
	s, err := Start(testContext(t), Config{Dir: tempDir(t) + "/share", Program: program, Started: func(pid int) error {
		for len(told) == 0 { // the shell forks meanwhile
			text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children")
			if err != nil {
				return err
			}
			if len(text) > 0 {
				break
			}
		}
		told = append(told, pid)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	if len(told) != 2 || told[0] != s.PID() {
		t.Errorf("told of %v, virtiofsd is %d", told, s.PID())
	}
}
