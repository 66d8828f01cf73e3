package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/vmm"
)

// The bus for devices that come later: a PCI bridge in a fixed slot of the machine's own bus, so that the guest's path of a device is
// known: the bridge's slot, then the device's.
const (
	plugBus     = "plug"
	plugBusSlot = 2
	plugSlots   = 30 // 1 to 30; 31 is taken from the start
)

// unplugTimeout bounds the wait for a guest that does not let go of a device, when the caller's context has no deadline.
const unplugTimeout = 30 * time.Second

// plugged is a device that came while the VM ran.
type plugged struct {
	kind    string // disk, card or share
	key     string // serial, ID or tag
	slot    int
	device  string // QEMU's names of the device and of what is behind it
	backend string
	gone    chan struct{} // closed when the guest has let go of it
}

func (p *plugged) isGone() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// plugState is the table of what is plugged in.
type plugState struct {
	mu     sync.Mutex
	slots  [plugSlots + 1]*plugged // slot 0 of a bridge is its hot-plug controller's
	next   int                     // number for names, never given twice
	resize chan struct{}           // holds one token: one change of size at a time
}

// deleted handles QEMU's event: a device is gone, because we asked, or because the guest threw it out.
func (s *plugState) deleted(data json.RawMessage) {
	var d struct {
		Device string `json:"device"`
	}
	if json.Unmarshal(data, &d) != nil || d.Device == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.slots {
		if p != nil && p.device == d.Device && !p.isGone() {
			close(p.gone)
		}
	}
}

// reserve takes a free slot for a device.
func (s *plugState) reserve(kind, key string) (*plugged, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := 0
	for i := plugSlots; i > 0; i-- {
		switch p := s.slots[i]; {
		case p == nil:
			free = i
		case p.kind == kind && p.key == key:
			return nil, fmt.Errorf("%s %s is there already", kind, key)
		}
	}
	if free == 0 {
		return nil, fmt.Errorf("all %d places for devices are taken", plugSlots)
	}
	s.next++
	n := strconv.Itoa(s.next)
	p := &plugged{kind: kind, key: key, slot: free, device: "plugged" + n, backend: "behind" + n, gone: make(chan struct{})}
	s.slots[free] = p
	return p, nil
}

func (s *plugState) release(p *plugged) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slots[p.slot] == p {
		s.slots[p.slot] = nil
	}
}

func (s *plugState) find(kind, key string) *plugged {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.slots {
		if p != nil && p.kind == kind && p.key == key {
			return p
		}
	}
	return nil
}

// reap frees the places of devices that went after nobody waited any more.
func (v *VM) reap(ctx context.Context) error {
	v.plug.mu.Lock()
	var gone []*plugged
	for _, p := range v.plug.slots {
		if p != nil && p.isGone() {
			gone = append(gone, p)
		}
	}
	v.plug.mu.Unlock()
	var errs []error
	for _, p := range gone {
		errs = append(errs, v.dropBackend(ctx, p))
	}
	return errors.Join(errs...)
}

// dropBackend removes what was behind a device that is gone, and frees its place.
func (v *VM) dropBackend(ctx context.Context, p *plugged) error {
	command, name := "netdev_del", "id"
	switch p.kind {
	case "disk":
		command, name = "blockdev-del", "node-name"
	case shareKind:
		command = "chardev-remove"
	}
	err := v.qmp.run(ctx, command, map[string]string{name: p.backend}, nil)
	var refused *qmpError
	if errors.As(err, &refused) && v.plug.find(p.kind, p.key) != p {
		return nil // somebody else was faster
	}
	if err != nil {
		return err
	}
	v.plug.release(p)
	return nil
}

// place is where the guest finds the device.
func (p *plugged) place(driver string) vmm.Place {
	return vmm.Place{Driver: driver, Address: fmt.Sprintf("%02x/%02x", plugBusSlot, p.slot)}
}

// AddDisk adds a disk to the running VM. The guest finds it by its place, and by its serial.
func (v *VM) AddDisk(ctx context.Context, d vmm.Disk) (vmm.Place, error) {
	place, err := v.addDisk(ctx, d)
	if err != nil {
		return vmm.Place{}, fmt.Errorf("adding disk %s to virtual machine %s: %w", d.Serial, v.name, err)
	}
	return place, nil
}

func (v *VM) addDisk(ctx context.Context, d vmm.Disk) (vmm.Place, error) {
	why := v.noPlug
	if d.Late() {
		why = v.noDisks
	}
	if why != nil {
		return vmm.Place{}, why
	}
	if err := errors.Join(checkDisk(d), d.Validate()); err != nil {
		return vmm.Place{}, err
	}
	if v.atStart["disk "+d.Serial] {
		return vmm.Place{}, fmt.Errorf("disk %s is there since the start", d.Serial)
	}
	onDevice, err := isBlockDevice(d.Path)
	if err != nil {
		return vmm.Place{}, err
	}
	if err := v.reap(ctx); err != nil {
		return vmm.Place{}, err
	}
	p, err := v.plug.reserve("disk", d.Serial)
	if err != nil {
		return vmm.Place{}, err
	}
	node, err := blockdev(p.backend, d, onDevice)
	if err == nil {
		err = v.qmp.run(ctx, "blockdev-add", node, nil)
	}
	if err != nil {
		v.plug.release(p)
		return vmm.Place{}, err
	}
	device := map[string]any{
		"driver": "virtio-blk-pci", "id": p.device, "drive": p.backend, "serial": d.Serial, "disable-legacy": "on",
		"bus": plugBus, "addr": strconv.FormatInt(int64(p.slot), 16),
	}
	if !d.ReadOnly { // QEMU would rather stop the whole VM than tell its guest that the host's file system is full
		device["werror"], device["rerror"] = "report", "report"
	}
	if err := v.qmp.run(ctx, "device_add", device, nil); err != nil {
		v.undo(ctx, p)
		return vmm.Place{}, err
	}
	return p.place("blk"), nil
}

// undo removes what is behind a device that could not be added.
func (v *VM) undo(ctx context.Context, p *plugged) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer cancel()
	// A device whose answer was lost may be there after all: then its place stays taken.
	_ = v.dropBackend(ctx, p)
}

// RemoveDisk takes away a disk that AddDisk has added. It waits until the guest has let go of it.
func (v *VM) RemoveDisk(ctx context.Context, serial string) error {
	if err := v.remove(ctx, "disk", serial); err != nil {
		return fmt.Errorf("removing disk %s from virtual machine %s: %w", serial, v.name, err)
	}
	return nil
}

func (v *VM) remove(ctx context.Context, kind, key string) error {
	why := v.noPlug
	if kind == "disk" {
		why = v.noDisks
	}
	if why != nil {
		return why
	}
	if v.atStart[kind+" "+key] {
		return fmt.Errorf("it is there since the start and cannot go: %w", errors.ErrUnsupported)
	}
	p := v.plug.find(kind, key)
	if p == nil {
		return fmt.Errorf("there is no such %s: %w", kind, os.ErrNotExist)
	}
	ctx, cancel := bounded(ctx, unplugTimeout)
	defer cancel()
	if err := v.qmp.run(ctx, "device_del", map[string]string{"id": p.device}, nil); err != nil && !p.isGone() {
		// A removal that is under way is refused a second time, so that a refusal says nothing; the event does.
		var refused *qmpError
		if !errors.As(err, &refused) {
			return err
		}
		if refused.Class == classNotFound {
			return v.dropBackend(ctx, p)
		}
	}
	select {
	case <-p.gone:
	case <-v.qmp.done:
		return v.qmp.failure()
	case <-ctx.Done():
		return fmt.Errorf("the guest does not let go of it: %w", ctx.Err())
	}
	return v.dropBackend(ctx, p)
}

// bounded gives a context a deadline if it has none.
func bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, limit)
}

// AddNIC adds a network card on taps to the running VM.
func (v *VM) AddNIC(ctx context.Context, n vmm.NIC) (vmm.Place, error) {
	place, err := v.addNIC(ctx, n)
	if err != nil {
		return vmm.Place{}, fmt.Errorf("adding network card %s to virtual machine %s: %w", n.ID, v.name, err)
	}
	return place, nil
}

func (v *VM) addNIC(ctx context.Context, n vmm.NIC) (_ vmm.Place, err error) {
	if v.noPlug != nil {
		return vmm.Place{}, v.noPlug
	}
	if err := checkNIC(n); err != nil {
		return vmm.Place{}, err
	}
	if v.atStart["card "+n.ID] {
		return vmm.Place{}, fmt.Errorf("network card %s is there since the start", n.ID)
	}
	if err := v.reap(ctx); err != nil {
		return vmm.Place{}, err
	}
	p, err := v.plug.reserve("card", n.ID)
	if err != nil {
		return vmm.Place{}, err
	}
	taps, vhosts, err := v.giveFiles(ctx, p, n)
	if err != nil {
		v.plug.release(p)
		return vmm.Place{}, err
	}
	netdev := map[string]any{"type": "tap", "id": p.backend}
	nameFiles(netdev, "fd", taps)
	if len(vhosts) > 0 {
		netdev["vhost"] = true
		nameFiles(netdev, "vhostfd", vhosts)
	}
	if err := v.qmp.run(ctx, "netdev_add", netdev, nil); err != nil {
		v.takeBackFiles(ctx, append(taps, vhosts...))
		v.plug.release(p)
		return vmm.Place{}, err
	}
	card := map[string]any{
		"driver": "virtio-net-pci", "id": p.device, "netdev": p.backend, "mac": n.MAC, "romfile": "", "disable-legacy": "on",
		"bus": plugBus, "addr": strconv.FormatInt(int64(p.slot), 16),
	}
	if n.MTU > 0 {
		card["host_mtu"] = n.MTU
	}
	if len(taps) > 1 {
		card["mq"], card["vectors"] = true, vectors(len(taps))
	}
	if err := v.qmp.run(ctx, "device_add", card, nil); err != nil {
		v.undo(ctx, p)
		return vmm.Place{}, err
	}
	return p.place(""), nil
}

// giveFiles hands the card's descriptors to QEMU, each with a name.
func (v *VM) giveFiles(ctx context.Context, p *plugged, n vmm.NIC) (taps, vhosts []string, err error) {
	give := func(kind string, files []*os.File) (names []string, err error) {
		for i, f := range files {
			name := fmt.Sprintf("%s-%s%d", p.backend, kind, i)
			if err := v.qmp.run(ctx, "getfd", map[string]string{"fdname": name}, nil, f); err != nil {
				return names, err
			}
			names = append(names, name)
		}
		return names, nil
	}
	if taps, err = give("tap", n.Taps); err == nil {
		vhosts, err = give("vhost", n.Vhosts)
	}
	if err != nil {
		v.takeBackFiles(ctx, append(taps, vhosts...))
		return nil, nil, err
	}
	return taps, vhosts, nil
}

// takeBackFiles closes QEMU's descriptors that were not used.
func (v *VM) takeBackFiles(ctx context.Context, names []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer cancel()
	for _, name := range names {
		// What the refused command had taken is closed by it, and not there any more.
		_ = v.qmp.run(ctx, "closefd", map[string]string{"fdname": name}, nil)
	}
}

// nameFiles sets the property for one descriptor, or that for several.
func nameFiles(args map[string]any, property string, names []string) {
	if len(names) > 1 {
		property += "s"
	}
	args[property] = strings.Join(names, ":")
}

// RemoveNIC takes away a card that AddNIC has added. It waits until the guest has let go of it.
func (v *VM) RemoveNIC(ctx context.Context, id string) error {
	if err := v.remove(ctx, "card", id); err != nil {
		return fmt.Errorf("removing network card %s from virtual machine %s: %w", id, v.name, err)
	}
	return nil
}

// isBlockDevice says how QEMU has to open a disk.
func isBlockDevice(path string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false, fmt.Errorf("disk %s: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return false, nil
	case unix.S_IFBLK:
		return true, nil
	}
	return false, fmt.Errorf("disk %s is neither a file nor a block device", path)
}
