package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/agent"
)

// Network is a pod's namespace, joined with a machine. Its methods may be called from several goroutines.
type Network struct {
	cfg Config
	ns  *Namespace

	mu         sync.Mutex
	state      state
	interfaces []*Interface
	guest      Guest
	detached   bool
}

// ErrDetached means that the network was given up.
var ErrDetached = errors.New("the pod's network was detached")

// Attach joins every interface of the namespace with a tap. A namespace without interfaces is no error: some runtimes set it up after
// the sandbox was made, and Rescan finds them. On failure nothing is left.
func Attach(ctx context.Context, cfg Config) (*Network, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(cfg.StateFile); err == nil {
		return nil, fmt.Errorf("%s: %w", cfg.StateFile, ErrInUse)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("looking for the network state: %w", err)
	}
	ns, err := OpenNamespace(cfg.NetNS)
	if err != nil {
		return nil, fmt.Errorf("attaching the pod's network: %w", err)
	}
	n := &Network{cfg: cfg, ns: ns, state: state{Version: stateVersion, NetNS: cfg.NetNS, Namespace: ns.id}}
	if _, err := n.Rescan(ctx); err != nil {
		ns.Close()
		if gone := n.forget(); gone != nil {
			err = errors.Join(err, gone)
		}
		return nil, fmt.Errorf("attaching the pod's network: %w", err)
	}
	return n, nil
}

// forget removes the state file when nothing is left to undo.
func (n *Network) forget() error {
	if len(n.state.Links) > 0 {
		return nil
	}
	return removeState(n.cfg.StateFile)
}

// Change is the difference between two looks at the namespace.
type Change struct {
	// Added have their taps and wait for the monitor and then for the agent.
	Added []*Interface
	// Updated have another name, MTU or other addresses: the agent has to be told.
	Updated []*agent.Interface
	// Removed are gone from the namespace, and their taps with them.
	Removed []*Interface
	// Routes says that the agent has to be told the routes and neighbours of Guest again.
	Routes bool
}

// Empty says that nothing changed.
func (c Change) Empty() bool {
	return len(c.Added) == 0 && len(c.Updated) == 0 && len(c.Removed) == 0 && !c.Routes
}

// Interfaces returns the joined interfaces, in the order in which they were found.
func (n *Network) Interfaces() []*Interface {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.interfaces)
}

// Guest returns what the agent has to be told, as of the last look.
func (n *Network) Guest() Guest {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.guest
}

// Rescan looks at the namespace again, gives up what is gone and joins what is new: all of it or nothing. The change is valid also
// with an error, and then has what is gone.
func (n *Network) Rescan(ctx context.Context) (Change, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.detached {
		return Change{}, ErrDetached
	}
	var change Change
	err := n.ns.Do(func() error {
		c, err := scan()
		if err != nil {
			return err
		}
		picked, err := c.pick(n.made)
		if err != nil {
			return err
		}
		guest, err := c.guest(picked)
		if err != nil {
			return err
		}
		// First what is gone: an interface that got another hardware address is removed and added.
		if change.Removed, err = n.dropGone(ctx, picked); err != nil {
			return err
		}
		if change.Added, err = n.connectNew(ctx, picked); err != nil {
			return err
		}
		n.interfaces = append(n.interfaces, change.Added...)
		if err := n.follow(picked); err != nil {
			return err
		}
		n.compare(guest, &change)
		return nil
	})
	return change, err
}

// made says whether a link is one of ours. Its number is not compared: what has the name is in the way all the same.
func (n *Network) made(name string) bool {
	return slices.ContainsFunc(n.state.Links, func(r record) bool { return r.Tap == name })
}

// known returns the joined interface of a link. One that got another hardware address is another card for the guest.
func (n *Network) known(link netlink.Link) *Interface {
	for _, i := range n.interfaces {
		if i.index == link.Attrs().Index && i.MAC == link.Attrs().HardwareAddr.String() {
			return i
		}
	}
	return nil
}

// connectNew joins the links that are not yet; all or none.
func (n *Network) connectNew(ctx context.Context, picked []netlink.Link) ([]*Interface, error) {
	var fresh []netlink.Link
	var records []record
	next := n.state.Next
	for _, link := range picked {
		if n.known(link) != nil {
			continue
		}
		a := link.Attrs()
		if next > maxNumber {
			return nil, fmt.Errorf("%w network interfaces came and went: more than %d", ErrTooMany, maxNumber+1)
		}
		r := record{Index: a.Index, Name: a.Name, MAC: a.HardwareAddr.String(), Tap: tapName(next), Model: n.cfg.Model, QueueLen: a.TxQLen,
			Limit: n.cfg.TxBitsPerSecond > 0}
		if r.Model == ModelTC {
			foreign, err := hasIngress(link)
			if err != nil {
				return nil, err
			}
			r.OwnQdisc = !foreign
		}
		next++
		fresh, records = append(fresh, link), append(records, r)
	}
	before := n.state
	n.state.Next = next
	n.state.Links = append(slices.Clone(before.Links), records...)
	if len(fresh) == 0 && len(before.Links) > 0 {
		return nil, nil
	}
	// Written also when there is nothing yet, so that the state file belongs to this sandbox.
	if err := n.state.save(n.cfg.StateFile); err != nil {
		n.state = before
		return nil, err
	}
	var added []*Interface
	for k, link := range fresh {
		i, err := n.connect(ctx, link, records[k])
		if err != nil {
			for _, i := range added {
				i.CloseFiles()
			}
			return nil, errors.Join(fmt.Errorf("interface %s: %w", link.Attrs().Name, err), n.takeBack(before, records[:k+1]))
		}
		added = append(added, i)
	}
	return added, nil
}

// takeBack undoes the links of a failed attempt. What cannot be undone stays in the state. The context of the caller may have ended,
// which was perhaps the failure; the kernel's answers are bounded by retryBusy.
func (n *Network) takeBack(before state, tried []record) error {
	var errs []error
	left := before
	for _, r := range tried {
		if err := r.undo(context.Background()); err != nil {
			errs = append(errs, err)
			left.Links = append(slices.Clone(left.Links), r)
		}
	}
	n.state = left
	return errors.Join(append(errs, left.save(n.cfg.StateFile))...)
}

// connect makes what joins one link with the machine. The calling thread is in the namespace.
func (n *Network) connect(ctx context.Context, link netlink.Link, r record) (_ *Interface, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a := link.Attrs()
	i := &Interface{Name: a.Name, MAC: r.MAC, Kind: link.Type(), MTU: a.MTU, Tap: r.Tap, index: a.Index, files: &files{vhost: n.cfg.Vhost}}
	defer func() {
		if err != nil {
			i.CloseFiles()
		}
	}()
	if !n.cfg.WithoutVhost {
		if i.files.vhosts, err = openVhost(n.cfg.Vhost, n.cfg.Queues); err != nil {
			return nil, err
		}
	}
	// Before frames flow, so that none passes without the limit.
	if err := n.limitLink(ctx, link); err != nil {
		return nil, err
	}
	if r.Model == ModelMacvtap {
		return i, n.connectMacvtap(link, i)
	}
	if i.files.taps, err = createTap(r.Tap, n.cfg.Queues); err != nil {
		return nil, err
	}
	tap, err := upTap(r.Tap, a.MTU)
	if err != nil {
		return nil, err
	}
	if err := n.limitTap(ctx, tap); err != nil {
		return nil, err
	}
	if err := addQdisc(ctx, tap); err != nil {
		return nil, err
	}
	// The way in comes last: before, the interface works as CNI left it.
	if err := redirect(ctx, tap, link); err != nil {
		return nil, err
	}
	if there, err := hasIngress(link); err != nil {
		return nil, err
	} else if !there {
		if err := addQdisc(ctx, link); err != nil {
			return nil, err
		}
	}
	return i, redirect(ctx, link, tap)
}

func (n *Network) connectMacvtap(link netlink.Link, i *Interface) error {
	if err := createMacvtap(i.Tap, link, n.cfg.Queues); err != nil {
		return err
	}
	// Up before it is opened: the driver tells the queues about carrier when the link comes up.
	if _, err := upTap(i.Tap, i.MTU); err != nil {
		return err
	}
	// On a thread of its own, because it leaves its view of the files changed.
	return n.ns.Do(func() (err error) {
		i.files.taps, err = openMacvtap(i.Tap, n.cfg.Queues)
		return err
	})
}

// dropGone gives up the interfaces that are not among the picked links. One that cannot be removed is tried again at the next look.
func (n *Network) dropGone(ctx context.Context, picked []netlink.Link) ([]*Interface, error) {
	here := map[*Interface]bool{}
	for _, link := range picked {
		here[n.known(link)] = true
	}
	var gone, kept []*Interface
	var errs []error
	for _, i := range n.interfaces {
		if here[i] {
			kept = append(kept, i)
			continue
		}
		at := slices.IndexFunc(n.state.Links, func(r record) bool { return r.Tap == i.Tap })
		if err := n.state.Links[at].undo(ctx); err != nil {
			errs = append(errs, err)
			kept = append(kept, i)
			continue
		}
		i.CloseFiles()
		n.state.Links = slices.Delete(slices.Clone(n.state.Links), at, at+1)
		gone = append(gone, i)
	}
	n.interfaces = kept
	if len(gone) > 0 {
		errs = append(errs, n.state.save(n.cfg.StateFile))
	}
	return gone, errors.Join(errs...)
}

// follow gives the taps of known interfaces a changed MTU.
func (n *Network) follow(picked []netlink.Link) error {
	for _, link := range picked {
		i, a := n.known(link), link.Attrs()
		if i == nil || i.Name == a.Name && i.MTU == a.MTU {
			continue
		}
		if i.MTU != a.MTU {
			tap, err := netlink.LinkByName(i.Tap)
			if err == nil {
				err = netlink.LinkSetMTU(tap, a.MTU)
			}
			if err != nil {
				return fmt.Errorf("setting the MTU of %s to %d: %w", i.Tap, a.MTU, err)
			}
		}
		// A new value: the caller may be reading the old one.
		replaced := *i
		replaced.Name, replaced.MTU = a.Name, a.MTU
		n.interfaces[slices.Index(n.interfaces, i)] = &replaced
	}
	return nil
}

// compare notes what the agent has to be told again, and takes over the new description.
func (n *Network) compare(guest Guest, change *Change) {
	for _, want := range guest.Interfaces {
		for _, had := range n.guest.Interfaces {
			fresh := slices.ContainsFunc(change.Added, func(i *Interface) bool { return i.MAC == want.GetHwAddr() })
			if !fresh && had.GetHwAddr() == want.GetHwAddr() && !proto.Equal(had, want) {
				change.Updated = append(change.Updated, want)
			}
		}
	}
	change.Routes = !slices.EqualFunc(n.guest.Routes, guest.Routes, func(a, b *agent.Route) bool { return proto.Equal(a, b) }) ||
		!slices.EqualFunc(n.guest.Neighbors, guest.Neighbors, func(a, b *agent.ARPNeighbor) bool { return proto.Equal(a, b) })
	n.guest = guest
}

// Detach removes what Attach and Rescan made and closes the files. It may be called again; when it fails, the state file is still there
// for Cleanup.
func (n *Network) Detach(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.detached {
		return nil
	}
	for _, i := range n.interfaces {
		i.CloseFiles()
	}
	if err := undo(ctx, n.ns, n.state.Links); err != nil {
		return fmt.Errorf("detaching the pod's network: %w", err)
	}
	n.detached = true
	n.ns.Close()
	return removeState(n.cfg.StateFile)
}
