package runtimeconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Variables of the environment that name the file.
const (
	EnvFile     = "CLOISTER_RUNTIME_CONFIG"
	EnvKataFile = "KATA_CONF_FILE"
)

// DefaultFiles are tried in this order when nothing names a file.
func DefaultFiles() []string {
	return []string{"/etc/cloister/runtime.toml", "/usr/share/cloister/runtime.toml"}
}

// kataFiles are where Kata's packages put theirs: the only ones that its variable may name (specification, section 5).
func kataFiles() []string {
	var files []string
	for _, dir := range []string{"/etc/kata-containers/", "/usr/share/defaults/kata-containers/",
		"/opt/kata/share/defaults/kata-containers/"} {
		files = append(files, dir+"configuration.toml", dir+"runtime-rs/configuration.toml")
	}
	return files
}

// Request is what names the configuration of a sandbox.
type Request struct {
	// File comes before everything else: the flag of a command.
	File string
	// Getenv reads the environment; nil has none.
	Getenv func(string) string
	// OptionsType and Options are the Any of containerd's create request.
	OptionsType string
	Options     []byte
	// Annotations are those of the pod.
	Annotations map[string]string
	// Defaults replaces DefaultFiles; nil does not.
	Defaults []string
}

// Load finds, reads and checks the configuration, in the order of the specification's section 5: the environment, the options of the
// create request, the default files. Without any the built-in defaults hold.
func Load(r Request) (*Effective, error) {
	e, err := r.files()
	if err != nil {
		return nil, err
	}
	return e.Annotated(r.Annotations)
}

func (r Request) files() (*Effective, error) {
	o, err := parseOptions(r.OptionsType, r.Options)
	if err != nil {
		return nil, err
	}
	file, err := r.named(o)
	if err != nil {
		return nil, err
	}
	var leaves []leaf
	var files []string
	switch {
	case file != "":
		if leaves, files, err = readTree(file); err != nil {
			return nil, err
		}
	case len(o.body) > 0:
		if leaves, err = parse(o.body, "config_body", KindOptions); err != nil {
			return nil, err
		}
	default:
		if leaves, files, err = r.defaults(); err != nil {
			return nil, err
		}
	}
	e, err := build(leaves, files)
	if err != nil {
		return nil, fmt.Errorf("the runtime's configuration: %w", err)
	}
	if o.ignored != "" {
		e.Ignored = append(e.Ignored, Ignored{Key: o.ignored,
			Source: Source{Kind: KindOptions}, Reason: "the options of another runtime have no meaning here"})
	}
	return e, nil
}

// named is the file that somebody names, or "".
func (r Request) named(o options) (string, error) {
	env := func(name string) string {
		if r.Getenv == nil {
			return ""
		}
		return r.Getenv(name)
	}
	kata := env(EnvKataFile)
	if r.File == "" && env(EnvFile) == "" && kata != "" && !slices.Contains(kataFiles(), kata) {
		return "", fmt.Errorf("%s is %s, want one of %s (hint: %s takes any file)", EnvKataFile, show(kata), strings.Join(kataFiles(),
			", "), EnvFile)
	}
	for _, f := range []struct{ what, file string }{{"the file", r.File}, {EnvFile, env(EnvFile)}, {EnvKataFile, kata},
		{"config_path", o.path}} {
		if f.file == "" {
			continue
		}
		if f.what == "the file" {
			return filepath.Abs(f.file)
		}
		if !filepath.IsAbs(f.file) {
			return "", fmt.Errorf("%s is %s, want an absolute path", f.what, show(f.file))
		}
		return filepath.Clean(f.file), nil
	}
	return "", nil
}

func (r Request) defaults() ([]leaf, []string, error) {
	files := r.Defaults
	if files == nil {
		files = DefaultFiles()
	}
	for _, file := range files {
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			continue // one that is there and cannot be read is an error
		}
		return readTree(file)
	}
	return nil, nil, nil
}

// options is runtimeoptions.v1.Options: 1 type_url, 2 config_path, 3 config_body.
type options struct {
	path    string
	body    []byte
	ignored string // the type of options that are not for us
}

// parseOptions reads the options of a create request.
func parseOptions(typeURL string, raw []byte) (options, error) {
	name := typeURL[strings.LastIndexByte(typeURL, '/')+1:]
	switch name {
	case "":
		if len(raw) > 0 {
			return options{}, fmt.Errorf("the options of the create request have %d bytes and no type", len(raw))
		}
		return options{}, nil
	case "containerd.runc.v1.Options": // clients that know runc only send them to every runtime
		return options{ignored: name}, nil
	case "runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options":
	default:
		return options{}, fmt.Errorf("the options of the create request have the type %s, want runtimeoptions.v1.Options", show(name))
	}
	var o options
	for len(raw) > 0 {
		number, wire, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return options{}, fmt.Errorf("reading the options of the create request: %w", protowire.ParseError(n))
		}
		raw = raw[n:]
		if wire != protowire.BytesType || number > 3 {
			if n = protowire.ConsumeFieldValue(number, wire, raw); n < 0 {
				return options{}, fmt.Errorf("reading the options of the create request: %w", protowire.ParseError(n))
			}
			raw = raw[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(raw)
		if n < 0 {
			return options{}, fmt.Errorf("reading the options of the create request: %w", protowire.ParseError(n))
		}
		raw = raw[n:]
		switch number {
		case 2:
			o.path = string(value)
		case 3:
			o.body = value
		}
	}
	if strings.ContainsRune(o.path, 0) || len(o.path) > maxText {
		return options{}, fmt.Errorf("config_path is %s, want a path", show(o.path))
	}
	return o, nil
}
