// Package bootstrap is the part of a containerd shim that containerd starts: it reads flags, environment, stdin and the bundle, makes the
// socket and the long-lived server, and answers in the form that the caller understands. containerd 1.6 to 2.4 and CRI-O are known.
//
// The life of a shim, from here:
//
//  1. containerd runs the program with the verb start in the bundle. A container of a pod that exists gets the address of the sandbox's shim.
//     For all others the socket is made, and this program started again without a verb, which is the server.
//  2. The server calls Handlers.Serve, which registers its services and runs until the task service's Shutdown.
//  3. Whenever a connection to the shim ends, also after an orderly Shutdown and for each container of a pod, containerd runs the program
//     with the verb delete. For a sandbox that means: nothing may be left. For a container of a pod (Params.Kind) it means that container
//     alone: the sandbox may be alive and well.
//
// containerd's own library pkg/shim is not used: it registers plugins at start, and brings OpenTelemetry and more with it.
package bootstrap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Exit is how a task ended, for the verb delete.
type Exit struct {
	PID    uint32
	Status uint32 // 137 when the shim was killed and nobody knows better
	At     time.Time
}

// Handlers are what a shim does besides starting.
type Handlers struct {
	Name, Version, Revision string // runtime type as io.containerd.cloister.v2, and the build

	// Serve is the server: it makes its services and calls s.Run.
	Serve func(ctx context.Context, s *Server) error
	// Delete removes what is left of p.ID: of all the sandbox, or, if p.Kind is KindContainer, of that container only. It is called more
	// than once, and after an orderly end too. When it is called for a sandbox, its server is no more.
	Delete func(ctx context.Context, p Params) (Exit, error)
	// Annotations are told with -info, as containerd.io/runtime-allow-mounts. May be nil.
	Annotations map[string]string
	// Features are told with -info: what the runtime can do of the OCI specification. May be nil.
	Features *features.Features
	// Extensions are added to the bootstrap result (containerd 2.3), as types.MountCapabilities. May be nil.
	Extensions []proto.Message
}

// IO are the streams of the program; tests give their own.
type IO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Main is the program: the exit code is 0, 1 for failures, or 2 for wrong use. args are without the program's name. getenv is os.Getenv outside of tests.
func Main(ctx context.Context, args []string, getenv func(string) string, std IO, h Handlers) int {
	err := run(ctx, args, getenv, std, h)
	if err == nil {
		return 0
	}
	fmt.Fprintf(std.Stderr, "%s: %v\n", h.Name, err)
	if errors.As(err, new(wrongUse)) {
		return 2
	}
	return 1
}

func run(ctx context.Context, args []string, getenv func(string) string, std IO, h Handlers) error {
	cwd, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("finding the bundle: %w", err)
	}
	p, err := parse(args, getenv, cwd, std.Stdout)
	if err != nil {
		return err
	}
	switch p.Verb {
	case VerbHelp:
		return nil // parse has written it
	case VerbVersion:
		_, err := fmt.Fprintf(std.Stdout, "%s:\n  Version:  %s\n  Revision: %s\n", h.Name, h.Version, h.Revision)
		return err
	case VerbInfo:
		return info(std, h)
	case VerbStart:
		return runStart(ctx, &p, std, h)
	case VerbDelete:
		return runDelete(ctx, &p, std, h)
	default:
		return serve(ctx, &p, getenv, std, h)
	}
}

// featuresType is the name that containerd gives to the features of a runtime.
const featuresType = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

func info(std IO, h Handlers) error {
	if _, err := io.Copy(io.Discard, io.LimitReader(std.Stdin, maxStdin)); err != nil { // the options change nothing here
		return fmt.Errorf("reading runtime options from stdin: %w", err)
	}
	about := &types.RuntimeInfo{Name: h.Name, Annotations: h.Annotations, Version: &types.RuntimeVersion{Version: h.Version, Revision: h.Revision}}
	if h.Features != nil {
		text, err := json.Marshal(h.Features)
		if err != nil {
			return fmt.Errorf("writing the runtime's features: %w", err)
		}
		about.Features = &anypb.Any{TypeUrl: featuresType, Value: text}
	}
	data, err := proto.Marshal(about)
	if err != nil {
		return fmt.Errorf("writing the runtime's information: %w", err)
	}
	_, err = std.Stdout.Write(data)
	return err
}

func runStart(ctx context.Context, p *Params, std IO, h Handlers) error {
	if err := p.readStdin(std.Stdin); err != nil {
		return err
	}
	address, err := p.start(ctx, self())
	if err != nil {
		return err
	}
	data, err := p.answer(address, h.Extensions)
	if err != nil {
		return err
	}
	_, err = std.Stdout.Write(data)
	return err
}

// self is the file of this program. Its name is what ps shows of the server; after an update replaced the file, the kernel's link to the old
// one still starts the same program.
func self() string {
	const link = "/proc/self/exe"
	name, err := os.Executable()
	if err != nil {
		return link
	}
	here, err := os.Stat(name)
	if err != nil {
		return link
	}
	running, err := os.Stat(link)
	if err != nil || !os.SameFile(here, running) {
		return link
	}
	return name
}

// runDelete ends a server that is still there, calls the handler and tells containerd how the task ended.
func runDelete(ctx context.Context, p *Params, std IO, h Handlers) error {
	if err := p.readBundle(); err != nil { // half a bundle, or none: clean what the id alone tells
		fmt.Fprintf(std.Stderr, "%s: %v\n", h.Name, err)
		p.Kind, p.SandboxID = KindSingle, p.ID
	}
	if p.Kind != KindContainer {
		if err := p.stopServer(ctx); err != nil {
			return err
		}
	}
	exit, err := h.Delete(ctx, *p)
	if err != nil {
		return fmt.Errorf("deleting %s: %w", p.ID, err)
	}
	if p.Kind != KindContainer {
		if err := p.removeSockets(ctx); err != nil {
			return err
		}
	}
	data, err := proto.Marshal(&task.DeleteResponse{Pid: exit.PID, ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At)})
	if err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	_, err = std.Stdout.Write(data)
	return err
}

// removeSockets removes the socket that the bundle names and the one that we would make, if nobody listens.
func (p *Params) removeSockets(ctx context.Context) error {
	err := removeStale(ctx, SocketAddress(p.SocketDir, p.Address, p.Namespace, p.SandboxID))
	if b, rerr := readSmall(filepath.Join(p.Bundle, addressFile)); rerr == nil {
		if _, perr := socketPath(string(b)); perr == nil {
			err = errors.Join(err, removeStale(ctx, string(b)))
		}
	}
	return err
}

func serve(ctx context.Context, p *Params, getenv func(string) string, std IO, h Handlers) error {
	p.SocketDir = getenv(socketDirEnv)
	if err := p.serverOptions(std.Stdin); err != nil {
		return err
	}
	if err := p.readBundle(); err != nil {
		return err
	}
	if getenv("GOGC") == "" {
		debug.SetGCPercent(40) // one process per pod: memory counts more than speed
	}
	return h.Serve(ctx, newServer(*p, std.Stderr))
}

// Std are the streams of this process. Those of the server go to the log that start opened, and never block.
func Std(args []string) IO {
	std := IO{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if p, err := parse(args, os.Getenv, "/", io.Discard); err == nil && p.Verb == VerbServe && p.Socket == "" {
		w := &logWriter{fd: 2}
		std.Stdout, std.Stderr = w, w
	}
	return std
}
