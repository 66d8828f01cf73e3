package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// StreamOptions are those of an exec or attach through the streaming server.
type StreamOptions struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	Sizes          <-chan remotecommand.TerminalSize
}

type sizes <-chan remotecommand.TerminalSize

// Next is remotecommand's queue.
func (s sizes) Next() *remotecommand.TerminalSize {
	size, ok := <-s
	if !ok {
		return nil
	}
	return &size
}

// ExecStream runs a command with streams; the error has the exit code if it was not 0, see ExitCode.
func (k *Container) ExecStream(ctx context.Context, o StreamOptions, args ...string) error {
	r, err := k.Pod.c.Exec(ctx, &runtime.ExecRequest{ContainerId: k.ID, Cmd: args, Tty: o.TTY, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil})
	if err != nil {
		return err
	}
	return o.run(ctx, r.Url)
}

// Attach joins the streams of the container's main process.
func (k *Container) Attach(ctx context.Context, o StreamOptions) error {
	r, err := k.Pod.c.Attach(ctx, &runtime.AttachRequest{ContainerId: k.ID, Tty: o.TTY, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil})
	if err != nil {
		return err
	}
	return o.run(ctx, r.Url)
}

func (o StreamOptions) run(ctx context.Context, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	e, err := remotecommand.NewSPDYExecutor(&restclient.Config{}, http.MethodPost, u)
	if err != nil {
		return err
	}
	s := remotecommand.StreamOptions{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Tty: o.TTY}
	if o.Sizes != nil {
		s.TerminalSizeQueue = sizes(o.Sizes)
	}
	return e.StreamWithContext(ctx, s)
}

// ExitCode is the exit code in the error of ExecStream, 0 for none, -1 for another error.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	var exit interface{ ExitStatus() int }
	if errors.As(err, &exit) {
		return exit.ExitStatus()
	}
	return -1
}

// Forward opens a stream to a TCP port in the pod, sends what is given, and returns what comes back: so many bytes, or all until the
// other side ends. Its own side stays open, since containerd gives the other way one second after the end of this one.
func (p *Pod) Forward(ctx context.Context, port int, send []byte, want int64) ([]byte, error) {
	r, err := p.c.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: p.ID, Port: []int32{int32(port)}})
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(r.Url)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(&restclient.Config{})
	if err != nil {
		return nil, err
	}
	conn, _, err := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u).Dial("portforward.k8s.io")
	if err != nil {
		return nil, fmt.Errorf("opening the connection for port forwarding: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return forward(conn, port, send, want)
}

func forward(conn httpstream.Connection, port int, send []byte, want int64) ([]byte, error) {
	h := http.Header{}
	h.Set("port", strconv.Itoa(port))
	h.Set("requestID", "0")
	h.Set("streamType", "error")
	errs, err := conn.CreateStream(h)
	if err != nil {
		return nil, fmt.Errorf("opening the error stream: %w", err)
	}
	_ = errs.Close() // nothing is sent on it
	h.Set("streamType", "data")
	data, err := conn.CreateStream(h)
	if err != nil {
		return nil, fmt.Errorf("opening the data stream: %w", err)
	}
	go func() { _, _ = io.Copy(data, bytes.NewReader(send)) }()
	got, err := io.ReadAll(io.LimitReader(data, want))
	_ = data.Close()
	if err != nil {
		return got, fmt.Errorf("reading the data stream: %w", err)
	}
	said, err := io.ReadAll(errs)
	if err == nil && len(said) > 0 {
		err = errors.New(string(said))
	}
	return got, err
}
