package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// redirect tries what connects the interface of a pod to that of its VM.
func (n Node) redirect(ctx context.Context) Check {
	c := Check{Name: "tc redirect", Status: OK, Detail: "a packet filter between a veth and a tap can be made", Required: true}
	probe := n.ProbeRedirect
	if probe == nil {
		probe = tryRedirect
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := probe(ctx)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrPermission):
		c.Status, c.Detail, c.Hint = Warn, "not examined: "+err.Error(), "run as root"
	default:
		c.Status, c.Detail = Missing, err.Error()
		c.Hint = "modprobe sch_ingress cls_u32 act_mirred tun veth; or set network.model = \"macvtap\""
	}
	return c
}

// tryRedirect makes a veth, a tap and the redirection of both in a new network namespace. The namespace, and all that is in it, goes with
// the thread that is in it.
func tryRedirect(ctx context.Context) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends here, and is used for nothing else
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("making a network namespace: %w", err)
			return
		}
		done <- redirectHere()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("trying redirection: %w", ctx.Err())
	}
}

func redirectHere() error {
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cloister0"}, PeerName: "cloister1"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("making a veth: %w", err)
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "cloister2"}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_ONE_QUEUE | netlink.TUNTAP_VNET_HDR}
	if err := netlink.LinkAdd(tap); err != nil {
		return fmt.Errorf("making a tap: %w", err)
	}
	a, err := netlink.LinkByName("cloister0")
	if err != nil {
		return fmt.Errorf("finding the veth: %w", err)
	}
	b, err := netlink.LinkByName("cloister2")
	if err != nil {
		return fmt.Errorf("finding the tap: %w", err)
	}
	for _, pair := range [][2]int{{a.Attrs().Index, b.Attrs().Index}, {b.Attrs().Index, a.Attrs().Index}} {
		if err := redirectOne(pair[0], pair[1]); err != nil {
			return err
		}
	}
	return nil
}

// redirectOne sends all that comes in at one interface out of another: the rules of the specification's section 10.
func redirectOne(from, to int) error {
	ingress := netlink.MakeHandle(0xffff, 0)
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: from, Handle: ingress, Parent: netlink.HANDLE_INGRESS}}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		return fmt.Errorf("adding an ingress queue (sch_ingress): %w", err)
	}
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from, Parent: ingress, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(to)},
	}
	if err := netlink.FilterAdd(filter); err != nil {
		return fmt.Errorf("adding a redirecting filter (cls_u32, act_mirred): %w", err)
	}
	return nil
}
