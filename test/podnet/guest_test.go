package podnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	guestnet "github.com/cloister/cloister/guest/network"
	"github.com/cloister/cloister/host/network"
)

// guest plays the virtual machine: a namespace with a card for each interface of the pod.
type guest struct {
	*netns
	cards    int
	maxFrame atomic.Int64 // the longest frame that was no bundle of segments
	frames   [8]atomic.Int64
}

func newGuest(t testing.TB, name string) *guest { return &guest{netns: newNetns(t, name)} }

// vnetHeader is the length of the header in front of every frame, as the kernel has it when nobody sets another.
const vnetHeader = 10

// plug gives the guest a card for the interface and carries frames between the two, as a monitor would, until the test ends.
func (g *guest) plug(i *network.Interface) {
	g.t.Helper()
	taps, _ := i.Files()
	if len(taps) == 0 {
		g.t.Fatalf("interface %s has no tap files", i.Name)
	}
	name := fmt.Sprintf("card%d", g.cards)
	g.cards++
	var cards []*os.File
	g.must(func() error {
		for range taps {
			fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			req, err := unix.NewIfreq(name)
			if err != nil {
				return err
			}
			flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			if len(taps) > 1 {
				flags |= unix.IFF_MULTI_QUEUE
			}
			req.SetUint16(flags)
			if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
				return err
			}
			cards = append(cards, os.NewFile(uintptr(fd), name))
		}
		return nil
	})
	g.run("ip link set " + name + " address " + i.MAC)
	// Checksums and segmentation are left to the other side, as QEMU and a Linux guest agree on.
	const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	for q, tap := range taps {
		for _, f := range []*os.File{tap, cards[q]} {
			if err := ioctl(f, unix.TUNSETOFFLOAD, offloads); err != nil {
				g.t.Fatal("setting offloads:", err)
			}
		}
		go g.carry(cards[q], tap, q)
		go g.carry(tap, cards[q], q)
	}
	g.t.Cleanup(func() {
		for _, f := range cards {
			f.Close()
		}
	})
}

func ioctl(f *os.File, req uint, value int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.IoctlSetInt(int(fd), req, value) })
	return errors.Join(err, failed)
}

func (g *guest) carry(to, from *os.File, queue int) {
	buf := make([]byte, 128<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return // closed, or the tap is gone
		}
		g.frames[queue%len(g.frames)].Add(1)
		if n > vnetHeader && buf[1] == 0 { // VIRTIO_NET_HDR_GSO_NONE
			for {
				old := g.maxFrame.Load()
				if int64(n-vnetHeader) <= old || g.maxFrame.CompareAndSwap(old, int64(n-vnetHeader)) {
					break
				}
			}
		}
		_, _ = to.Write(buf[:n]) // a card that is down takes nothing
	}
}

// configure is what the agent in the guest does with the requests.
func (g *guest) configure(ctx context.Context, want network.Guest) {
	g.t.Helper()
	g.must(func() error {
		stack, err := guestnet.Open()
		if err != nil {
			return err
		}
		defer stack.Close()
		interfaces, routes, neighbors := want.Requests()
		for _, i := range interfaces {
			if err := stack.UpdateInterface(ctx, i.GetInterface()); err != nil {
				return err
			}
		}
		if err := stack.UpdateRoutes(routes.GetRoutes().GetRoutes()); err != nil {
			return err
		}
		return stack.AddNeighbors(neighbors.GetNeighbors().GetARPNeighbors())
	})
}

// poll looks again and again until done or the context ends.
func poll(t testing.TB, ctx context.Context, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, ctx.Err())
		}
	}
}

// serve answers HTTP on port 80 with text, and with a big body for /big.
func (n *netns) serve(text string) {
	n.t.Helper()
	var l net.Listener
	n.must(func() (err error) {
		l, err = net.Listen("tcp", ":80")
		return err
	})
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/big" {
			_, _ = w.Write(make([]byte, bigBody))
			return
		}
		fmt.Fprint(w, text, " to ", r.RemoteAddr)
	})}
	go func() { _ = s.Serve(l) }()
	n.t.Cleanup(func() { s.Close() })
}

const bigBody = 8 << 20

// get fetches a page from the namespace.
func (n *netns) get(ctx context.Context, url string) string {
	n.t.Helper()
	dial := func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = n.do(func() error {
			c, err = new(net.Dialer).DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		n.t.Fatalf("from %s: %v", n.name(), err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(body)
}

// ping sends one echo request with that much data, not to be fragmented, and waits for the answer.
func (n *netns) ping(ctx context.Context, to string, size int) error {
	ip := net.ParseIP(to)
	kind, reply, proto := byte(8), byte(0), "ip4:icmp"
	if ip.To4() == nil {
		kind, reply, proto = 128, 129, "ip6:ipv6-icmp"
	}
	var c *net.IPConn
	err := n.do(func() error {
		pc, err := net.ListenPacket(proto, "")
		if err != nil {
			return err
		}
		c = pc.(*net.IPConn)
		return noFragments(c, kind == 8)
	})
	if err != nil {
		return err
	}
	defer c.Close()
	msg := make([]byte, 8+size)
	msg[0] = kind
	binary.BigEndian.PutUint16(msg[4:], uint16(os.Getpid()))
	binary.BigEndian.PutUint16(msg[6:], uint16(size))
	if kind == 8 { // the kernel does it for IPv6
		binary.BigEndian.PutUint16(msg[2:], checksum(msg))
	}
	deadline, _ := ctx.Deadline()
	buf := make([]byte, 64<<10)
	for {
		if _, err := c.WriteTo(msg, &net.IPAddr{IP: ip}); err != nil {
			return err
		}
		// Again every second: the first may be lost while a bridge learns or a neighbour is looked for.
		again := time.Now().Add(time.Second)
		if err := c.SetReadDeadline(again); err != nil {
			return err
		}
		for {
			got, from, err := c.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err
			}
			if got == len(msg) && buf[0] == reply && from.(*net.IPAddr).IP.Equal(ip) && string(buf[4:8]) == string(msg[4:8]) {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no answer from %s to %s", to, n.name())
		}
	}
}

func noFragments(c *net.IPConn, v4 bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if v4 {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
		}
	})
	return errors.Join(err, failed)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
