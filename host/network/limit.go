package network

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// minRate is the lowest limit, in bits per second: less is no network.
const minRate = 8000

// limitHandle is that of our token buckets, by which they are found again.
var limitHandle = netlink.MakeHandle(0x0be0, 0)

// A token bucket holds what may be sent at once: what goes through in burstTime, at least burstMin, so that a frame of several segments
// fits; at most burstMax. Behind it waits what goes through in queueTime; the rest is dropped, which TCP takes as the sign to slow down.
const (
	burstTime = 0.02
	burstMin  = 32 << 10
	burstMax  = 4 << 20
	queueTime = 0.1
	queueMin  = 64 << 10
	queueMax  = 64 << 20
)

// bucket is the token bucket for a rate in bits per second.
func bucket(index int, bits uint64) *netlink.Tbf {
	rate := bits / 8
	burst := min(max(uint64(float64(rate)*burstTime), burstMin), burstMax)
	queue := min(max(uint64(float64(rate)*queueTime), queueMin), queueMax)
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: limitHandle, Parent: netlink.HANDLE_ROOT},
		// The bucket is given as the time, in the kernel's ticks, in which it fills.
		Rate: rate, Limit: uint32(burst + queue),
		Buffer: uint32(max(1, float64(burst)/float64(rate)*netlink.TIME_UNITS_PER_SEC*netlink.TickInUsec())),
	}
}

// limit bounds what the link sends. One that has a queueing discipline of somebody else is refused: it would be lost.
func limit(ctx context.Context, link netlink.Link, bits uint64) error {
	a := link.Attrs()
	list, err := netlink.QdiscList(link)
	if err != nil {
		return fmt.Errorf("listing the queueing disciplines of %s: %w", a.Name, err)
	}
	for _, q := range list {
		// What the kernel gives every link has no number.
		if qa := q.Attrs(); qa.Parent == netlink.HANDLE_ROOT && qa.Handle>>16 != 0 {
			return fmt.Errorf("limiting %s to %d bits per second: it has the queueing discipline %s of somebody else: %w (hint: limit the"+
				" rate in one place, the CNI configuration or network.tx_bits_per_second)", a.Name, bits, q.Type(), ErrUnsupported)
		}
	}
	if err := retryBusy(ctx, func() error { return netlink.QdiscAdd(bucket(a.Index, bits)) }); err != nil {
		return fmt.Errorf("limiting %s to %d bits per second: %w (hint: the kernel needs sch_tbf)", a.Name, bits, err)
	}
	return nil
}

// removeLimit takes our token bucket away, if there is one.
func removeLimit(ctx context.Context, link netlink.Link) error {
	a := link.Attrs()
	list, err := netlink.QdiscList(link)
	if err != nil {
		return fmt.Errorf("listing the queueing disciplines of %s: %w", a.Name, err)
	}
	for _, q := range list {
		if qa := q.Attrs(); qa.Parent != netlink.HANDLE_ROOT || qa.Handle != limitHandle {
			continue
		}
		del := &netlink.GenericQdisc{QdiscType: "tbf", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: a.Index, Handle: limitHandle, Parent: netlink.HANDLE_ROOT}}
		err := retryBusy(ctx, func() error { return netlink.QdiscDel(del) })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("removing the limit of %s: %w", a.Name, err)
		}
	}
	return nil
}

// limitTap bounds what goes to the pod: it is what the tap sends. The limit goes with the tap.
func (n *Network) limitTap(ctx context.Context, tap netlink.Link) error {
	if n.cfg.RxBitsPerSecond == 0 {
		return nil
	}
	return limit(ctx, tap, uint64(n.cfg.RxBitsPerSecond))
}

// limitLink bounds what comes from the pod: it is what the pod's interface sends.
func (n *Network) limitLink(ctx context.Context, link netlink.Link) error {
	if n.cfg.TxBitsPerSecond == 0 {
		return nil
	}
	return limit(ctx, link, uint64(n.cfg.TxBitsPerSecond))
}
