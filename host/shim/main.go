package shim

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/host/shim/bootstrap"
	"github.com/cloister/cloister/host/shim/events"
	"github.com/cloister/cloister/host/template"
)

// runtimeName is how containerd's configuration names the runtime.
const runtimeName = "io.containerd.cloister.v2"

// idleTime is how long a shim waits for its first container; containerd may have died after it had started the shim.
const idleTime = 2 * time.Minute

// killed is the exit code of a task whose shim was killed.
const killed = 128 + 9

// Main is the program containerd-shim-cloister-v2.
func Main(ctx context.Context, args []string, version string) int {
	if status, ok := template.Command(args); ok {
		return status
	}
	return bootstrap.Main(ctx, args, os.Getenv, bootstrap.Std(args), bootstrap.Handlers{
		Name: runtimeName, Version: version, Features: ociFeatures(), Serve: serve, Delete: remove,
	})
}

// serve is the long-lived server of one pod.
func serve(ctx context.Context, server *bootstrap.Server) error {
	p := server.Params
	level := &slog.LevelVar{}
	if p.Debug {
		level.Set(slog.LevelDebug)
	}
	log := slog.New(slog.NewTextHandler(server.Log, &slog.HandlerOptions{Level: level}))
	publisher := events.New(events.Config{
		Namespace: p.Namespace, TTRPCAddress: p.TTRPCAddress, Address: p.Address, PublishBinary: p.PublishBinary, Log: log,
	})
	self, err := os.Executable()
	if err != nil {
		log.Warn("no templates can be used", "error", err)
	}
	service := New(Config{
		Self:      self,
		Namespace: p.Namespace, ID: p.SandboxID, Logger: log, Level: level, Options: p.Options, Exit: server.Shutdown,
		Events: logged{publisher, log},
	})
	server.Idle(idleTime, service.Busy)
	err = server.Run(ctx, func(srv *ttrpc.Server) error {
		bootstrap.RegisterTask(srv, service)
		api.RegisterTTRPCSandboxService(srv, &Pod{service: service})
		return nil
	})
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if serr := service.shutPod(clean); serr != nil { // nothing, unless a signal ended us
		log.Error("removing the sandbox", "error", serr)
	}
	if cerr := publisher.Close(clean); cerr != nil {
		log.Warn("events were not delivered", "error", cerr)
	}
	return err
}

// logged publishes, and writes down what could not be published.
type logged struct {
	publisher *events.Publisher
	log       *slog.Logger
}

func (l logged) Publish(event proto.Message) {
	if err := l.publisher.Publish(event); err != nil {
		l.log.Warn("publishing an event", "error", err)
	}
}

// remove cleans up after a shim that is gone. A container of a pod has nothing on the host that is not its sandbox's.
func remove(ctx context.Context, p bootstrap.Params) (bootstrap.Exit, error) {
	exit := bootstrap.Exit{Status: killed, At: time.Now()}
	if p.Kind == bootstrap.KindContainer {
		return exit, nil
	}
	dir, err := sandbox.Dir(sandbox.Root, p.Namespace, p.ID)
	if err != nil {
		return exit, err
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if err := sandbox.Cleanup(ctx, dir); err != nil {
		return exit, fmt.Errorf("%w (hint: `shim delete` can be run again)", err)
	}
	return exit, nil
}
