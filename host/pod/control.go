package pod

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The control socket of a pod understands two requests of one line each.
//
//	CONNECT <port>   answered by `OK <n>`; from then on the connection is one to that port of the guest. This is what VMMs with
//	                 hybrid vsock do, so that a client for those reaches the guest as well.
//	STOP <seconds>   answered by `OK 0`; begins the orderly end of the pod. The connection closes when nothing is left of it. A
//	                 negative number leaves the grace period as it is.
//
// Anything else, or a request that fails, is answered by `ERR <reason>`. Only the owner can reach the socket: its directory is private.
type control struct {
	l      *net.UnixListener
	pod    *supervisor
	ctx    context.Context
	cancel context.CancelFunc
	vm     atomic.Pointer[Machine]
	count  atomic.Uint64
	conns  sync.WaitGroup
}

// requestTimeout bounds the first line and its answer.
const requestTimeout = 10 * time.Second

func listenControl(path string, pod *supervisor) (*control, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	c := &control{l: l, pod: pod}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.conns.Go(c.accept)
	return c, nil
}

// serveGuest makes the guest reachable.
func (c *control) serveGuest(vm Machine) { c.vm.Store(&vm) }

// close ends all connections. It is called when nothing is left of the pod.
func (c *control) close() {
	c.cancel()
	c.l.Close()
	c.conns.Wait()
}

func (c *control) accept() {
	for {
		conn, err := c.l.Accept()
		if err != nil {
			return
		}
		c.conns.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(c.ctx, func() { conn.Close() })
			defer stop()
			c.serve(conn)
		})
	}
}

func (c *control) serve(conn net.Conn) {
	_ = conn.SetDeadline(time.Now().Add(requestTimeout))
	line, err := readLine(conn)
	if err != nil {
		return
	}
	verb, arg, err := parseRequest(line)
	if err != nil {
		fmt.Fprintf(conn, "ERR %v\n", err)
		return
	}
	if verb == "STOP" {
		c.pod.requestStop(time.Duration(arg) * time.Second)
		if _, err := io.WriteString(conn, "OK 0\n"); err != nil {
			return
		}
		<-c.ctx.Done()
		return
	}
	vm := c.vm.Load()
	if vm == nil {
		_, _ = io.WriteString(conn, "ERR the virtual machine is still starting\n")
		return
	}
	guest, err := (*vm).Dial(c.ctx, uint32(arg))
	if err != nil {
		fmt.Fprintf(conn, "ERR %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
		return
	}
	defer guest.Close()
	if _, err := fmt.Fprintf(conn, "OK %d\n", c.count.Add(1)); err != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	splice(c.ctx, conn, guest)
}

// splice copies both ways until both directions are at their end, or one is broken.
func splice(ctx context.Context, client, guest net.Conn) {
	stop := context.AfterFunc(ctx, func() { client.Close(); guest.Close() })
	defer stop()
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(guest, client)
		guest.Close() // on a multiplexed stream this ends our direction only
	})
	_, _ = io.Copy(client, guest)
	client.Close()
	up.Wait()
}

// readLine reads a short line byte by byte: what follows it belongs to somebody else.
func readLine(r io.Reader) (string, error) {
	var line []byte
	var b [1]byte
	for len(line) < 512 {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		line = append(line, b[0])
	}
	return "", errors.New("the line is too long")
}

func parseRequest(line string) (verb string, arg int64, err error) {
	verb, rest, ok := strings.Cut(line, " ")
	verb = strings.ToUpper(verb)
	if !ok || verb != "CONNECT" && verb != "STOP" {
		return "", 0, errors.New("expected CONNECT <port> or STOP <seconds>")
	}
	arg, err = strconv.ParseInt(rest, 10, 64)
	switch {
	case err != nil:
		return "", 0, fmt.Errorf("%s needs a number", verb)
	case verb == "CONNECT" && (arg < 1 || arg > 1<<32-1):
		return "", 0, errors.New("the port must be between 1 and 4294967295")
	case verb == "STOP" && (arg < -1 || arg > 24*3600):
		return "", 0, errors.New("the grace period must be between -1 and 86400 seconds")
	}
	return verb, arg, nil
}

// dialControl sends a request to a pod's supervisor and returns the connection after its answer.
func dialControl(ctx context.Context, run, name, request string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(run, name, ctlSocket))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("pod %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reaching the supervisor of pod %s: %w", name, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(2 * requestTimeout))
	answer := ""
	if _, err = io.WriteString(conn, request+"\n"); err == nil {
		answer, err = readLine(conn)
	}
	if err == nil && !strings.HasPrefix(answer, "OK") {
		err = errors.New(strings.TrimPrefix(answer, "ERR "))
	}
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("asking the supervisor of pod %s: %w", name, err)
	}
	return conn, conn.SetDeadline(time.Time{})
}

// waitClosed waits until the other side closes.
func waitClosed(ctx context.Context, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_, err := io.Copy(io.Discard, bufio.NewReader(conn))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
