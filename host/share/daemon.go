package share

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// defaultProgram is the configuration's default.
const defaultProgram = "/usr/libexec/virtiofsd"

// programs are the places where distributions put virtiofsd, best first.
func programs() []string {
	return []string{defaultProgram, "/usr/lib/virtiofsd", "/usr/bin/virtiofsd", "/usr/lib/qemu/virtiofsd", "/opt/kata/libexec/virtiofsd"}
}

// kind is which of the two programs called virtiofsd it is.
type kind int

const (
	kindRust kind = iota // the one that is developed: gitlab.com/virtio-fs/virtiofsd
	kindC                // QEMU's own, up to version 7.2
)

// Find returns the virtiofsd to use: program when it exists; when it is empty or the configuration's default, the first one that is
// installed.
func Find(program string) (string, error) {
	list := []string{program}
	if program == "" || program == defaultProgram {
		list = programs()
	}
	for _, p := range list {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("virtiofsd: none of %s can be run\nhint: install the package virtiofsd (in Debian 12 it is in qemu-system-common), or set "+
		"storage.virtiofsd; without one, storage.shared_fs = \"none\" and storage.guest_pull = true", strings.Join(list, ", "))
}

// examine asks a program which virtiofsd it is.
func examine(ctx context.Context, program string) (kind, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Env = []string{"LANG=C"}
	cmd.WaitDelay = time.Second
	var out limited
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("asking %s for its version: %w", program, err)
	}
	text := out.b.String()
	switch {
	case strings.HasPrefix(text, "virtiofsd version "), strings.Contains(text, "Fabrice Bellard"):
		return kindC, nil
	case strings.HasPrefix(text, "virtiofsd "):
		return kindRust, nil
	}
	return 0, fmt.Errorf("%s is no virtiofsd: its version is %.80q", program, text)
}

// limited keeps the first bytes of an output.
type limited struct{ b bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := 4096 - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// arguments makes the command line. The socket that listens is file descriptor 3.
func arguments(k kind, dir, cache string, extra []string) ([]string, error) {
	if cache == "" {
		cache = "auto"
	}
	if !slices.Contains([]string{"auto", "always", "metadata", "never"}, cache) {
		return nil, fmt.Errorf("virtio-fs cache %q: expected auto, always, metadata or never", cache)
	}
	opts, err := options(extra)
	if err != nil {
		return nil, err
	}
	if k == kindRust {
		args := []string{"--fd=3", "--shared-dir=" + dir, "--cache=" + cache, "--sandbox=namespace", "--xattr"}
		for _, o := range opts {
			args = append(args, "--"+o.text("-"))
		}
		return args, nil
	}
	// The C program knows no cache of metadata alone; auto is the next one that sees changes of the host.
	switch cache {
	case "metadata":
		cache = "auto"
	case "never":
		cache = "none"
	}
	args := []string{"--fd=3", "-f", "-o", "source=" + dir, "-o", "cache=" + cache, "-o", "sandbox=namespace", "-o", "xattr"}
	for _, o := range opts {
		switch o.name {
		case "thread-pool-size", "rlimit-nofile", "syslog":
			args = append(args, "--"+o.text("-"))
		case "xattr":
		case "inode-file-handles", "allow-mmap", "seccomp", "translate-uid", "translate-gid", "preserve-noatime":
			return nil, fmt.Errorf("argument --%s is not one of QEMU's virtiofsd\nhint: install the newer virtiofsd, or take it out of "+
				"storage.virtiofsd_args", o.name)
		default:
			args = append(args, "-o", o.text("_"))
		}
	}
	return args, nil
}

// option is one argument of virtiofsd.
type option struct {
	name     string // with dashes
	value    string
	hasValue bool
}

func (o option) text(join string) string {
	name := strings.ReplaceAll(o.name, "-", join)
	if !o.hasValue {
		return name
	}
	return name + "=" + o.value
}

// options reads arguments in both styles: --name[=value], and -o name[=value][,…] in one word or two. Those that decide what is shared,
// with whom and how it is confined are not for others to set.
func options(args []string) ([]option, error) {
	var out []option
	var errs []error
	add := func(text string) {
		name, value, has := strings.Cut(text, "=")
		o := option{name: strings.ReplaceAll(name, "_", "-"), value: value, hasValue: has}
		switch o.name {
		case "fd", "socket-path", "socket-group", "shared-dir", "source", "sandbox", "cache", "tag", "daemonize", "help", "version",
			"print-capabilities", "modcaps":
			errs = append(errs, fmt.Errorf("argument %q of virtiofsd is set by the runtime", text))
		case "":
			errs = append(errs, fmt.Errorf("argument %q of virtiofsd has no name", text))
		default:
			out = append(out, o)
		}
	}
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "-o" && i+1 < len(args):
			i++
			for _, o := range strings.Split(args[i], ",") {
				add(o)
			}
		case strings.HasPrefix(a, "-o") && len(a) > 2:
			for _, o := range strings.Split(strings.TrimSpace(a[2:]), ",") {
				add(o)
			}
		case strings.HasPrefix(a, "--"):
			add(a[2:])
		default:
			errs = append(errs, fmt.Errorf("argument %q of virtiofsd: expected --NAME=VALUE or -o NAME=VALUE", a))
		}
	}
	return out, errors.Join(errs...)
}
