package network

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

// Model is the way an interface of the pod is joined with the machine's card.
type Model string

// The models.
const (
	// ModelTC makes a tap and two traffic-control filters that hand every frame from one side to the other.
	ModelTC Model = "tcfilter"
	// ModelMacvtap makes a macvtap in passthru mode on top of the interface: one copy less, but the kernel must have macvtap.
	ModelMacvtap Model = "macvtap"
)

// The limits. A pod with more of anything is refused.
const (
	// MaxInterfaces leaves room for other devices on the machine's PCI bus.
	MaxInterfaces = 16
	// MaxAddresses is the number of addresses of all interfaces.
	MaxAddresses = 256
	// MaxRoutes is the number of routes the guest is told.
	MaxRoutes = 1024
	// MaxNeighbors is the number of neighbours the guest is told.
	MaxNeighbors = 1024
	// MaxQueues is the number of queue pairs of one card.
	MaxQueues = 64

	// maxLinks bounds the links of a namespace, those included that are not passed to the machine.
	maxLinks = 256
	// maxScanned bounds the routes and neighbours that are looked at in order to find those that count.
	maxScanned = 16 * MaxRoutes
)

// defaultVhost is the device of the kernel's virtio-net back end.
const defaultVhost = "/dev/vhost-net"

// Config says which namespace to connect, and how.
type Config struct {
	// NetNS is the path of the pod's network namespace, as in the OCI specification.
	NetNS string
	// StateFile is where Attach writes down what has to be removed. Its directory must exist.
	StateFile string
	// Model is ModelTC when empty.
	Model Model
	// Queues is the number of queue pairs of each card, at most as many as the machine has CPUs; 1 when zero.
	Queues int
	// Vhost is the device of the kernel's virtio-net back end; /dev/vhost-net when empty. When it is not there, frames go through the
	// monitor.
	Vhost string
	// WithoutVhost leaves the kernel's back end unused.
	WithoutVhost bool
	// RxBitsPerSecond and TxBitsPerSecond limit what each interface gives to the pod and takes from it; 0 is no limit. The first needs
	// ModelTC.
	RxBitsPerSecond, TxBitsPerSecond int
}

func (c Config) withDefaults() Config {
	if c.Model == "" {
		c.Model = ModelTC
	}
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Vhost == "" {
		c.Vhost = defaultVhost
	}
	return c
}

// Validate reports every fault of the configuration at once.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	if c.NetNS == "" {
		errs = append(errs, ErrHostNetwork)
	}
	for what, path := range map[string]string{"network namespace": c.NetNS, "state file": c.StateFile, "vhost device": c.Vhost} {
		if (path != "" || what == "state file") && (!filepath.IsAbs(path) || strings.ContainsRune(path, 0)) {
			errs = append(errs, fmt.Errorf("%s %q: expected an absolute path", what, path))
		}
	}
	if c.Model != ModelTC && c.Model != ModelMacvtap {
		errs = append(errs, fmt.Errorf("network model %q: expected %q or %q", c.Model, ModelTC, ModelMacvtap))
	}
	if c.Queues < 1 || c.Queues > MaxQueues {
		errs = append(errs, fmt.Errorf("%d network queues: expected 1 to %d", c.Queues, MaxQueues))
	}
	for what, bits := range map[string]int{"received": c.RxBitsPerSecond, "sent": c.TxBitsPerSecond} {
		if bits < 0 || bits > 0 && bits < minRate {
			errs = append(errs, fmt.Errorf("a limit of %d bits per second %s: expected 0 or at least %d", bits, what, minRate))
		}
	}
	if c.RxBitsPerSecond > 0 && c.Model == ModelMacvtap {
		errs = append(errs, fmt.Errorf("a limit of bits received needs the network model %q: %w (hint: network.rx_bits_per_second)", ModelTC,
			ErrUnsupported))
	}
	if len(errs) > 0 {
		return fmt.Errorf("network configuration: %w", errors.Join(errs...))
	}
	return nil
}
