package guestkernel

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
)

//go:embed config/*.config
var fragments embed.FS

// Fragment is a part of a configuration: lines CONFIG_NAME=value, and comments.
type Fragment struct {
	Name string
	Text []byte
}

// Fragments are those of this program, in the order in which they are read.
func Fragments() ([]Fragment, error) {
	names, err := fs.Glob(fragments, "config/*.config")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var out []Fragment
	for _, n := range names {
		text, err := fragments.ReadFile(n)
		if err != nil {
			return nil, err
		}
		out = append(out, Fragment{n, text})
	}
	return out, nil
}

// maxFragment bounds a file of options; a whole configuration of a distribution has 300 kB.
const maxFragment = 1 << 20

// reOption is a line of a fragment. Values are y, n, numbers and texts; there is no m: this kernel loads nothing.
var reOption = regexp.MustCompile(`^CONFIG_([A-Za-z0-9_]{1,100})=(y|n|-?[0-9]{1,20}|0x[0-9a-fA-F]{1,16}|"[^"\\]{0,1000}")$`)

// option is one wish, and where it stands.
type option struct{ name, value, at string }

// parse reads fragments. Within our own an option that is there twice is an error; later fragments of others replace what earlier ones say.
func parse(own, others []Fragment) ([]option, error) {
	var all []option
	var faults []error
	index := map[string]int{}
	read := func(f Fragment, replace bool) {
		if len(f.Text) > maxFragment {
			faults = append(faults, fmt.Errorf("%s has %d bytes, more than %d", f.Name, len(f.Text), maxFragment))
			return
		}
		for n, line := range strings.Split(string(f.Text), "\n") {
			line = strings.TrimSpace(line)
			at := fmt.Sprintf("%s:%d", f.Name, n+1)
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			m := reOption.FindStringSubmatch(line)
			if m == nil {
				faults = append(faults, fmt.Errorf("%s: %q is no option such as CONFIG_NAME=y (nothing is a module)", at, shorten(line)))
				continue
			}
			o := option{m[1], m[2], at}
			i, known := index[o.name]
			switch {
			case !known:
				index[o.name] = len(all)
				all = append(all, o)
			case replace:
				all[i] = o
			default:
				faults = append(faults, fmt.Errorf("%s: CONFIG_%s stands at %s already", at, o.name, all[i].at))
			}
		}
	}
	for _, f := range own {
		read(f, false)
	}
	for _, f := range others {
		read(f, true)
	}
	return all, errors.Join(faults...)
}

func shorten(s string) string {
	if len(s) > 80 {
		return s[:80] + ".."
	}
	return s
}

// wishes are the options in the form that the kernel's configuration reads.
func wishes(options []option) []byte {
	var b bytes.Buffer
	for _, o := range options {
		if o.value == "n" {
			fmt.Fprintf(&b, "# CONFIG_%s is not set\n", o.name)
			continue
		}
		fmt.Fprintf(&b, "CONFIG_%s=%s\n", o.name, o.value)
	}
	return b.Bytes()
}

// check compares a whole configuration with what was wished for. An option that the kernel did not take is missing something it depends
// on, or no longer has this name: leaving it out in silence would make a guest that lacks it.
func check(options []option, config []byte) error {
	got := map[string]string{}
	for line := range strings.Lines(string(config)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(name, "CONFIG_") {
			got[strings.TrimPrefix(name, "CONFIG_")] = value
		}
	}
	var faults []error
	for _, o := range options {
		is, there := got[o.name]
		if !there {
			is = "n"
		}
		if is != o.value {
			faults = append(faults, fmt.Errorf("%s: CONFIG_%s=%s is wanted, the kernel's configuration makes it %s: "+
				"it depends on another option, or this series has no such option", o.at, o.name, o.value, is))
		}
	}
	return errors.Join(faults...)
}
