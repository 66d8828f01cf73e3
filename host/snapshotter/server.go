package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cloister/cloister/layer"
)

// stopTimeout is how long calls under way may take when the server is told to end.
const stopTimeout = 20 * time.Second

// Open makes a snapshotter on a root, with containerd's content store and the real builder. containerd need not run yet.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Snapshotter, error) {
	conn, err := grpc.NewClient("unix:"+cfg.Containerd, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("connecting to containerd: %w", err)
	}
	s, err := New(ctx, cfg, log, grpcContent{contentapi.NewContentClient(conn)}, layer.Build)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s.conn = conn
	return s, nil
}

// Serve answers containerd on the configured socket until ctx ends. ready is called when it does.
func (s *Snapshotter) Serve(ctx context.Context, ready func()) error {
	l, err := listen(s.cfg.Socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	api.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	diffapi.RegisterDiffServer(server, differ{s: s})
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		hard := time.AfterFunc(stopTimeout, server.Stop)
		defer hard.Stop()
		server.GracefulStop()
	})()
	ready()
	if err := server.Serve(l); err != nil {
		return fmt.Errorf("serving on %s: %w", s.cfg.Socket, err)
	}
	<-stopped
	return nil
}

// listen makes the socket; only root can connect. The root's lock says that one that is there is nobody's.
func listen(name string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o711); err != nil {
		return nil, fmt.Errorf("making the socket's directory: %w", err)
	}
	if info, err := os.Lstat(name); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("listening on %s: there is a file that is no socket", name)
		}
		if conn, err := net.Dial("unix", name); err == nil {
			return nil, errors.Join(fmt.Errorf("listening on %s: somebody answers there already", name), conn.Close())
		}
		if err := os.Remove(name); err != nil {
			return nil, fmt.Errorf("removing an old socket: %w", err)
		}
	}
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", name, err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listening on %s: %w", name, err), l.Close())
	}
	return l, nil
}
