package fakeguest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/hashicorp/yamux"

	"github.com/cloister/cloister/host/vmm"
)

// Machine is a virtual machine without a monitor, whose guest is a Guest. It ends when the guest's connection does.
type Machine struct {
	// Reason is what the guest gave as the reason of its end. Reason and Lines are set before anything else is called.
	Reason string
	// Lines are the end of the console.
	Lines []string

	session *yamux.Session
	once    sync.Once
	exited  chan struct{}

	mu      sync.Mutex
	stopped bool
	vcpus   int
	memory  int
}

var _ vmm.Machine = (*Machine)(nil)

// StartMachine runs the guest.
func StartMachine(g *Guest) (*Machine, error) {
	return StartServer(func(conn net.Conn) { _ = g.Serve(conn) })
}

// StartServer runs something else as the guest, until it returns: conn carries the multiplexed streams.
func StartServer(serve func(conn net.Conn)) (*Machine, error) {
	host, guest := net.Pipe()
	c := yamux.DefaultConfig()
	c.EnableKeepAlive, c.LogOutput, c.StreamOpenTimeout = false, io.Discard, 0
	session, err := yamux.Client(host, c)
	if err != nil {
		return nil, err
	}
	m := &Machine{session: session, exited: make(chan struct{}), Lines: []string{"console line"}}
	go func() {
		serve(guest)
		guest.Close()
		m.end()
	}()
	return m, nil
}

func (m *Machine) end() { m.once.Do(func() { m.session.Close(); close(m.exited) }) }

// Kill ends the machine as a crash of its monitor does.
func (m *Machine) Kill() { m.end() }

// Dial opens a stream to a port.
func (m *Machine) Dial(_ context.Context, port uint32) (net.Conn, error) {
	s, err := m.session.OpenStream()
	if err != nil {
		return nil, err
	}
	var prefix [4]byte
	binary.BigEndian.PutUint32(prefix[:], port)
	if _, err := s.Write(prefix[:]); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Exited is closed when the machine has ended.
func (m *Machine) Exited() <-chan struct{} { return m.exited }

// Err says why it has ended.
func (m *Machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped {
		return nil
	}
	return &vmm.ExitError{Name: "fake", Reason: m.Reason, Console: m.Lines}
}

// Stop ends the machine at once.
func (m *Machine) Stop(context.Context) error {
	m.mu.Lock()
	select {
	case <-m.exited:
	default:
		m.stopped = true
	}
	m.mu.Unlock()
	m.end()
	return nil
}

// FatalReason is Reason.
func (m *Machine) FatalReason() string { return m.Reason }

// ConsoleTail is Lines.
func (m *Machine) ConsoleTail(int) []string { return m.Lines }

// PID is this process, in which the guest runs.
func (m *Machine) PID() int { return os.Getpid() }

// Size is what Resize has brought the machine to; zero before.
func (m *Machine) Size() (vcpus, memoryMiB int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vcpus, m.memory
}

// Resize notes the size.
func (m *Machine) Resize(_ context.Context, vcpus, memoryMiB int) (int, int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.vcpus, m.memory = vcpus, memoryMiB
	return vcpus, memoryMiB, nil
}

var errPlug = fmt.Errorf("the fake machine has no slots: %w", errors.ErrUnsupported)

// AddDisk and the others cannot be done.
func (m *Machine) AddDisk(context.Context, vmm.Disk) (vmm.Place, error) {
	return vmm.Place{}, errPlug
}

// RemoveDisk is not possible.
func (m *Machine) RemoveDisk(context.Context, string) error { return errPlug }

// AddNIC is not possible.
func (m *Machine) AddNIC(context.Context, vmm.NIC) (vmm.Place, error) { return vmm.Place{}, errPlug }

// RemoveNIC is not possible.
func (m *Machine) RemoveNIC(context.Context, string) error { return errPlug }
