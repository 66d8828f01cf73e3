package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// quiet is how long nothing may change before the namespace is looked at: a CNI plugin makes an interface in many steps.
	quiet = 50 * time.Millisecond
	// latest is when it is looked at in any case.
	latest = time.Second
)

// Watch looks at the namespace whenever something in it changes, until ctx ends, and calls changed with each difference or with what
// prevented the look; when that returns an error, Watch ends with it. It begins with a look, so that nothing is missed between Attach
// and Watch. The end of ctx is not an error.
func (n *Network) Watch(ctx context.Context, changed func(Change, error) error) error {
	var socket *nl.NetlinkSocket
	err := n.ns.Do(func() (err error) {
		socket, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("watching the pod's network: %w", err)
	}
	events, failed := make(chan struct{}, 1), make(chan error, 1)
	go func() { failed <- receive(socket, events) }()
	defer func() {
		socket.Close()
		<-failed // the goroutine has ended
	}()
	events <- struct{}{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			failed <- err // for the deferred function
			return fmt.Errorf("watching the pod's network: %w", err)
		case <-events:
		}
		if !settle(ctx, events) {
			return nil
		}
		change, err := n.Rescan(ctx)
		switch {
		case ctx.Err() != nil && change.Empty() || errors.Is(err, ErrDetached):
			return nil
		case err == nil && change.Empty():
			continue
		}
		if err := changed(change, err); err != nil {
			return err
		}
	}
}

// receive turns notifications into at most one waiting event, so that a flood of them costs no memory.
func receive(socket *nl.NetlinkSocket, events chan<- struct{}) error {
	for {
		// Lost notifications are one as well.
		if _, _, err := socket.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case events <- struct{}{}:
		default:
		}
	}
}

// settle waits until nothing changed for a while. It returns false when ctx has ended.
func settle(ctx context.Context, events <-chan struct{}) bool {
	end := time.NewTimer(latest)
	defer end.Stop()
	calm := time.NewTimer(quiet)
	defer calm.Stop()
	for {
		select {
		case <-events:
			calm.Reset(quiet)
		case <-calm.C:
			return true
		case <-end.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}
