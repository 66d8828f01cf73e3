package qemu

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/cloister/cloister/host/vmm"
)

// restore loads the template's state into a QEMU that waits for it, and plugs in what the template does not have. The guest does not run yet.
func (v *VM) restore(ctx context.Context, cfg *vmm.Config, t *template, copying *memoryCopy) error {
	if err := v.prepareMove(ctx, t.state); err != nil {
		return err
	}
	if err := copying.wait(ctx); err != nil {
		return err
	}
	if err := v.qmp.run(ctx, "migrate-incoming", map[string]string{"uri": "fd:" + moveFile}, nil); err != nil {
		return err
	}
	if err := v.moved(ctx); err != nil {
		if ctx.Err() != nil {
			return err // the host is too busy, or nobody wants the VM any more
		}
		return &TemplateError{err}
	}
	if cfg.Share != nil {
		if err := v.addShare(ctx, cfg.Share); err != nil {
			return err
		}
	}
	for _, n := range cfg.NICs {
		if _, err := v.AddNIC(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// addShare plugs in the shared directory, which stays for the life of the VM.
func (v *VM) addShare(ctx context.Context, s *vmm.Share) error {
	server, err := connectShare(ctx, s)
	if err != nil {
		return err
	}
	defer server.Close()
	p, err := v.plug.reserve(shareKind, s.Tag)
	if err != nil {
		return err
	}
	if err := v.qmp.run(ctx, "getfd", map[string]string{"fdname": p.backend}, nil, server); err != nil {
		return err
	}
	type object = map[string]any
	if err := v.qmp.run(ctx, "chardev-add", object{"id": p.backend, "backend": object{"type": "socket", "data": object{
		"addr": object{"type": "fd", "data": object{"str": p.backend}}, "server": false,
	}}}, nil); err != nil {
		return err
	}
	return v.qmp.run(ctx, "device_add", object{
		"driver": "vhost-user-fs-pci", "id": p.device, "chardev": p.backend, "tag": s.Tag, "queue-size": shareQueue,
		"bus": plugBus, "addr": strconv.FormatInt(int64(p.slot), 16),
	}, nil)
}

// shareKind is what the table of plugged devices calls the shared directory of a VM that did not start with it.
const shareKind = "share"

// shareQueue is how many requests to the shared directory can wait.
const shareQueue = 1024

// connectShare connects to the server of the shared directory; the result is for QEMU.
func connectShare(ctx context.Context, s *vmm.Share) (*os.File, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", s.Socket)
	if err != nil {
		return nil, fmt.Errorf("connecting to the server of the shared directory: %w", err)
	}
	defer conn.Close()
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		return nil, fmt.Errorf("connecting to the server of the shared directory: %w", err)
	}
	return f, nil
}
