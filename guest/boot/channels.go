package boot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/cloister/cloister/guest/mux"
)

// channels are the listeners of the guest's services.
type channels struct{ agents, logs, forward net.Listener }

// openChannels opens what there is: the virtio-serial port with the multiplexer, vsock, or both. wait blocks while the
// channel is up.
func (m *machine) openChannels(ctx context.Context) (channels, func(context.Context) error, error) {
	var v channels
	var err error
	v.agents, err = mux.ListenVsock(mux.PortAgent)
	vsock := err == nil
	if !vsock && !errors.Is(err, mux.ErrNoVsock) {
		return channels{}, nil, err
	}
	noVsock := err
	if vsock {
		if v.logs, err = mux.ListenVsock(mux.PortLogs); err != nil {
			return channels{}, nil, err
		}
		if v.forward, err = mux.ListenVsock(mux.PortForward); err != nil {
			return channels{}, nil, err
		}
	}
	port, err := m.findPort(ctx, vsock)
	if errors.Is(err, mux.ErrNoPort) && vsock {
		m.log.Info("serving on vsock")
		return v, func(ctx context.Context) error { <-ctx.Done(); return nil }, nil
	}
	if err != nil {
		return channels{}, nil, fmt.Errorf("no channel to the host: %w", errors.Join(err, noVsock))
	}
	f, err := mux.OpenVirtioPort(ctx, port)
	if err != nil {
		return channels{}, nil, err
	}
	x, err := mux.New(f, m.log, mux.PortAgent, mux.PortLogs, mux.PortForward)
	if err != nil {
		return channels{}, nil, err
	}
	m.log.Info("serving on virtio-serial", "port", filepath.Base(port), "vsock", vsock)
	wait := func(ctx context.Context) error {
		if err := x.Serve(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%w: %w", errHostGone, err)
		}
		return errHostGone
	}
	c := channels{x.Listener(mux.PortAgent), x.Listener(mux.PortLogs), x.Listener(mux.PortForward)}
	if vsock {
		c = channels{mux.Join(c.agents, v.agents), mux.Join(c.logs, v.logs), mux.Join(c.forward, v.forward)}
	}
	return c, wait, nil
}

// findPort looks for the virtio-serial port; where vsock works the port need not come.
func (m *machine) findPort(ctx context.Context, optional bool) (string, error) {
	port, err := mux.FindVirtioPort("/sys", "/dev", mux.PortName)
	if err == nil || optional || !errors.Is(err, mux.ErrNoPort) {
		return port, err
	}
	wait, cancel := context.WithTimeout(ctx, m.cfg.HotplugTimeout)
	defer cancel()
	err = m.events.WaitFor(wait, "the virtio-serial port "+mux.PortName, func() (bool, error) {
		var err error
		port, err = mux.FindVirtioPort("/sys", "/dev", mux.PortName)
		if errors.Is(err, mux.ErrNoPort) {
			return false, nil
		}
		return err == nil, err
	})
	return port, err
}
