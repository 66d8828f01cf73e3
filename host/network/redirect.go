package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// filterPriority is that of our filters, by which they are found again. A low priority: filters of others come first.
const filterPriority = 0xbe00

const (
	busyDelay   = 10 * time.Millisecond // as runtime-shim.md section 10 has it
	busyLimit   = 5 * time.Second
	busyCeiling = 200 * time.Millisecond
)

// retryBusy repeats op while the kernel says that the device is busy, which is so for a moment after other changes.
func retryBusy(ctx context.Context, op func() error) error {
	ctx, cancel := context.WithTimeout(ctx, busyLimit)
	defer cancel()
	for delay := busyDelay; ; delay = min(2*delay, busyCeiling) {
		err := op()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w (%w)", err, ctx.Err())
		}
	}
}

// hasIngress says whether the link has a queueing discipline for what arrives: ingress or clsact, of which there can be one.
func hasIngress(link netlink.Link) (bool, error) {
	list, err := netlink.QdiscList(link)
	if err != nil {
		return false, fmt.Errorf("listing the queueing disciplines of %s: %w", link.Attrs().Name, err)
	}
	for _, q := range list {
		if q.Attrs().Parent == netlink.HANDLE_CLSACT {
			return true, nil
		}
	}
	return false, nil
}

// addQdisc gives the link a queueing discipline for what arrives. It is clsact, not ingress, because others that want either find it.
func addQdisc(ctx context.Context, link netlink.Link) error {
	a := link.Attrs()
	err := retryBusy(ctx, func() error {
		return netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: a.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}})
	})
	if err != nil {
		return fmt.Errorf("adding the queueing discipline clsact to %s: %w", a.Name, err)
	}
	return nil
}

// redirect sends every frame that arrives on from out of to, and keeps it from the host's own network code.
func redirect(ctx context.Context, from, to netlink.Link) error {
	attrs := netlink.FilterAttrs{
		LinkIndex: from.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
	}
	actions := func() []netlink.Action { return []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)} }
	err := retryBusy(ctx, func() error {
		return netlink.FilterAdd(&netlink.U32{FilterAttrs: attrs, Actions: actions()}) // without a selector: all
	})
	if errors.Is(err, unix.ENOENT) {
		// A kernel without u32, which newer distributions leave out.
		err = retryBusy(ctx, func() error { return netlink.FilterAdd(&netlink.MatchAll{FilterAttrs: attrs, Actions: actions()}) })
	}
	if err != nil {
		return fmt.Errorf("redirecting from %s to %s: %w (hint: the kernel needs cls_u32 or cls_matchall, and act_mirred)",
			from.Attrs().Name, to.Attrs().Name, err)
	}
	return nil
}

// removeRedirect takes away our filter and, when it is ours, the queueing discipline.
func removeRedirect(ctx context.Context, link netlink.Link, ownQdisc bool) error {
	there, err := hasIngress(link)
	if err != nil || !there {
		return err
	}
	a := link.Attrs()
	if ownQdisc {
		err := retryBusy(ctx, func() error {
			return netlink.QdiscDel(&netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
				LinkIndex: a.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
			}})
		})
		if err != nil {
			return fmt.Errorf("removing the queueing discipline of %s: %w", a.Name, err)
		}
		return nil
	}
	filters, err := netlink.FilterList(link, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return fmt.Errorf("listing the filters of %s: %w", a.Name, err)
	}
	for _, f := range filters {
		if f.Attrs().Priority != filterPriority {
			continue
		}
		// Without a handle, all of this priority: u32 has a table besides the filter.
		del := &netlink.GenericFilter{FilterType: f.Type(), FilterAttrs: netlink.FilterAttrs{
			LinkIndex: a.Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		}}
		if err := retryBusy(ctx, func() error { return netlink.FilterDel(del) }); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing the redirection from %s: %w", a.Name, err)
		}
	}
	return nil
}
