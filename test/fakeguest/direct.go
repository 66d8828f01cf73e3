package fakeguest

import (
	"context"
	"net"
	"sync"

	"github.com/containerd/ttrpc"

	"github.com/cloister/cloister/wire/agent"
)

// ServeAgent serves the agent's protocol on a connection of its own, as a guest does whose monitor has a device for each stream.
func (g *Guest) ServeAgent(conn net.Conn) error {
	srv, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	defer srv.Close()
	agent.RegisterAgentServiceService(srv, service{guest: g})
	agent.RegisterHealthService(srv, health{g})
	one := &listener{conns: make(chan net.Conn, 1), done: make(chan struct{}), addr: conn.LocalAddr()}
	ended := &watched{Conn: conn, closed: make(chan struct{})}
	one.conns <- ended
	go func() { _ = srv.Serve(context.Background(), one) }()
	<-ended.closed
	g.killAll()
	return one.Close()
}

// watched is a connection whose end can be waited for.
type watched struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (w *watched) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.Conn.Close()
}
