package bootstrap

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Verb is what the caller wants of the program.
type Verb string

// What containerd asks for: a verb, or a flag that stands for one.
const (
	VerbServe   Verb = ""
	VerbStart   Verb = "start"
	VerbDelete  Verb = "delete"
	VerbInfo    Verb = "info"
	VerbVersion Verb = "version"
	VerbHelp    Verb = "help"
)

// maxStdin bounds what is read from stdin: runtime options, which may have a whole configuration in them.
const maxStdin = 10 << 20

// Params are what the program was started with: flags, environment, stdin and the bundle.
type Params struct {
	Verb          Verb
	Namespace     string
	ID            string // container, or sandbox where the sandbox service is used
	Address       string // gRPC address of containerd, part of our socket's name; empty with CRI-O
	TTRPCAddress  string // address of containerd for events; may be empty
	PublishBinary string // containerd, for events without ttrpc
	Bundle        string // absolute
	Socket        string // socket to listen on instead of an inherited one (flag -socket)
	SocketDir     string // where the socket is made; "" is DefaultSocketDir
	Debug         bool

	// Kind and SandboxID come from the annotations in config.json of the bundle.
	Kind      Kind
	SandboxID string // ID, except for a container of a pod

	// Options are the runtime options, as a rule runtimeoptions.v1.Options; nil without.
	Options *anypb.Any

	boot     bool // the caller speaks the bootstrap protocol of containerd 2.3
	maxShim  string
	schedule bool // SCHED_CORE
}

// wrongUse is an error of who called the program: containerd and CRI-O never do so.
type wrongUse struct{ error }

func (w wrongUse) Unwrap() error { return w.error }

const byHand = "hint: containerd or CRI-O start this program for each pod, it does nothing by hand; docs/howto/containerd.md says how to set it up, and " +
	"`cloister check` whether a node is ready"

// parse reads flags and environment. It opens nothing. For VerbHelp it writes to usage what there is. Its errors are of type wrongUse.
func parse(args []string, getenv func(string) string, cwd string, usage io.Writer) (Params, error) {
	p, err := parseFlags(args, getenv, cwd, usage)
	if err != nil {
		return Params{}, wrongUse{fmt.Errorf("%w\n%s", err, byHand)}
	}
	return p, nil
}

func parseFlags(args []string, getenv func(string) string, cwd string, usage io.Writer) (Params, error) {
	var p Params
	var info, version bool
	f := flag.NewFlagSet("containerd-shim-cloister-v2", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.BoolVar(&p.Debug, "debug", false, "write more to the log")
	f.BoolVar(&version, "v", false, "print the version")
	f.BoolVar(&version, "version", false, "print the version")
	f.BoolVar(&info, "info", false, "read runtime options from stdin, print containerd's RuntimeInfo")
	f.StringVar(&p.Namespace, "namespace", "", "containerd `namespace`")
	f.StringVar(&p.ID, "id", "", "`id` of the container or sandbox")
	f.StringVar(&p.Socket, "socket", "", "`path` of a socket to serve instead of an inherited one")
	f.StringVar(&p.Bundle, "bundle", "", "`path` of the bundle, if it is not the working directory")
	f.StringVar(&p.Address, "address", "", "gRPC `address` of containerd")
	f.StringVar(&p.PublishBinary, "publish-binary", "", "`path` of containerd, for events where it has no ttrpc address")
	f.String("debug-socket", "", "accepted and not used")
	if err := f.Parse(args); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			return Params{}, fmt.Errorf("reading the flags: %w", err)
		}
		f.SetOutput(usage)
		fmt.Fprintf(usage, "usage: %s [FLAGS] [start|delete]\n\n", f.Name())
		f.PrintDefaults()
		fmt.Fprintf(usage, "\n%s\n", byHand)
		return Params{Verb: VerbHelp}, nil
	}
	if f.NArg() > 1 {
		return Params{}, fmt.Errorf("unexpected argument %q after the verb", clip(f.Arg(1)))
	}
	switch {
	case version:
		p.Verb = VerbVersion
		return p, nil
	case info:
		p.Verb = VerbInfo
		return p, nil
	}
	switch p.Verb = Verb(f.Arg(0)); p.Verb {
	case VerbServe, VerbStart, VerbDelete:
	default:
		return Params{}, fmt.Errorf("unknown verb %q: want start, delete or none", clip(f.Arg(0)))
	}
	if p.Namespace == "" {
		p.Namespace = getenv("NAMESPACE")
	}
	if p.Address == "" {
		p.Address = getenv("GRPC_ADDRESS")
	}
	p.TTRPCAddress, p.maxShim, p.schedule = getenv("TTRPC_ADDRESS"), getenv("MAX_SHIM_VERSION"), getenv("SCHED_CORE") != ""
	if p.Bundle == "" {
		p.Bundle = cwd
	}
	if !filepath.IsAbs(p.Bundle) {
		p.Bundle = filepath.Join(cwd, p.Bundle)
	}
	p.Bundle = filepath.Clean(p.Bundle)
	if err := checkID("namespace", p.Namespace); err != nil {
		return Params{}, err
	}
	if err := checkID("id", p.ID); err != nil {
		return Params{}, err
	}
	return p, nil
}

// readStdin takes what containerd writes to start: until 2.2 the runtime options alone, as google.protobuf.Any; since 2.3 BootstrapParams of
// the bootstrap protocol, which repeats id and namespace. Both are protobuf without a marker, so that only these two tell them apart.
func (p *Params) readStdin(r io.Reader) error {
	data, err := io.ReadAll(io.LimitReader(r, maxStdin+1))
	if err != nil {
		return fmt.Errorf("reading runtime options from stdin: %w", err)
	}
	return p.parseStdin(data)
}

func (p *Params) parseStdin(data []byte) error {
	if len(data) > maxStdin {
		return fmt.Errorf("reading runtime options from stdin: more than %d bytes", maxStdin)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil
	}
	var boot bootapi.BootstrapParams
	if err := proto.Unmarshal(data, &boot); err == nil && boot.GetInstanceID() == p.ID && boot.GetNamespace() == p.Namespace {
		return p.takeBoot(&boot)
	}
	var opts anypb.Any
	if err := proto.Unmarshal(data, &opts); err != nil || opts.GetTypeUrl() == "" {
		return fmt.Errorf("reading runtime options from stdin: neither bootstrap parameters for %s/%s nor options of a runtime (%d bytes)",
			p.Namespace, p.ID, len(data))
	}
	p.Options = &opts
	return nil
}

func (p *Params) takeBoot(boot *bootapi.BootstrapParams) error {
	p.boot = true
	p.Debug = p.Debug || boot.GetLogLevel() <= bootapi.LogLevel_LOG_LEVEL_DEBUG
	if a := boot.GetContainerdGrpcAddress(); a != "" {
		p.Address = a
	}
	if a := boot.GetContainerdTtrpcAddress(); a != "" {
		p.TTRPCAddress = a
	}
	if b := boot.GetContainerdBinary(); b != "" {
		p.PublishBinary = b
	}
	if d := boot.GetSocketDir(); d != "" {
		if !filepath.IsAbs(d) || strings.ContainsRune(d, 0) {
			return fmt.Errorf("reading bootstrap parameters: socket directory %q is not absolute", clip(d))
		}
		p.SocketDir = filepath.Clean(d)
	}
	// containerd adds the options as the only extension today. Others may come: those with a type that we know win.
	for _, e := range boot.GetExtensions() {
		v := e.GetValue()
		known := v.MessageIs((*runtimeoptions.Options)(nil)) || v.MessageIs((*options.Options)(nil))
		if v != nil && (known || p.Options == nil) {
			p.Options = v
			if known {
				break
			}
		}
	}
	return nil
}

// shimCgroup is the cgroup that the options of runc's shim ask for; "" without.
func (p *Params) shimCgroup() string {
	var o options.Options
	if p.Options == nil || !p.Options.MessageIs(&o) || p.Options.UnmarshalTo(&o) != nil {
		return ""
	}
	return o.GetShimCgroup()
}

// checkID accepts what may be part of a path: identifiers of containerd and CRI-O, and a little more.
func checkID(what, s string) error {
	if s == "" {
		return fmt.Errorf("no %s given", what)
	}
	if len(s) > 128 {
		return fmt.Errorf("the %s has %d characters: at most 128", what, len(s))
	}
	for i, c := range []byte(s) {
		word := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
		if !word && (i == 0 || c != '.' && c != '-') {
			return fmt.Errorf("the %s %q has %q where it may not: letters, digits, '_', and after the first '.' and '-'", what, clip(s), c)
		}
	}
	return nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// serveArgs are the flags of the server that start makes.
func (p *Params) serveArgs() []string {
	args := []string{"-namespace", p.Namespace, "-id", p.ID, "-address", p.Address, "-publish-binary", p.PublishBinary, "-bundle", p.Bundle}
	if p.Debug {
		args = append(args, "-debug")
	}
	return args
}

// serveEnv is the environment of the server: ours, with what the bootstrap protocol says instead of the environment.
func (p *Params) serveEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE", socketDirEnv:
		default:
			env = append(env, e)
		}
	}
	return append(env, "TTRPC_ADDRESS="+p.TTRPCAddress, "GRPC_ADDRESS="+p.Address, "NAMESPACE="+p.Namespace, socketDirEnv+"="+p.SocketDir)
}
