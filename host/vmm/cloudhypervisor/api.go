package cloudhypervisor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/host/process"
)

// answerLimit bounds an answer with its header. The longest one, vm.info of a machine with many devices, has some ten kilobytes.
const answerLimit = 1 << 20

// client speaks the monitor's REST API: HTTP/1.1 on a unix socket, a connection for each call. The monitor does not keep more than ten
// connections, and a call that was given up leaves no half-read answer behind.
type client struct {
	socket string
}

// apiError is an answer that is not a success.
type apiError struct {
	Status  int
	Message string
}

func (e *apiError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("Cloud Hypervisor answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return fmt.Sprintf("Cloud Hypervisor answered %d %s: %s", e.Status, http.StatusText(e.Status), e.Message)
}

// get reads from an endpoint of the API, put changes something there. The description of the API is
// vmm/src/api/openapi/cloud-hypervisor.yaml in cloud-hypervisor/cloud-hypervisor.
func (c *client) get(ctx context.Context, name string, out any) error {
	return c.call(ctx, http.MethodGet, name, nil, out, nil)
}

func (c *client) put(ctx context.Context, name string, in, out any, files ...*os.File) error {
	return c.call(ctx, http.MethodPut, name, in, out, files)
}

func (c *client) call(ctx context.Context, method, name string, in, out any, files []*os.File) error {
	err := c.roundTrip(ctx, method, name, in, out, files)
	if err == nil {
		return nil
	}
	// The deadline of the connection is that of ctx, and says less.
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("%s: %w", name, err)
}

func (c *client) roundTrip(ctx context.Context, method, name string, in, out any, files []*os.File) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost/api/v1/"+name, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	var text bytes.Buffer
	if err := req.Write(&text); err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := send(conn.(*net.UnixConn), text.Bytes(), files); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, answerLimit)), req)
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		return &apiError{resp.StatusCode, reason(resp.Body)}
	}
	if out == nil || resp.StatusCode == http.StatusNoContent {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}

// send writes a request. Files go along with its first byte: the monitor's HTTP server collects what it receives with a request and
// gives it to the handler.
func send(conn *net.UnixConn, text []byte, files []*os.File) error {
	if len(files) == 0 {
		_, err := conn.Write(text)
		return err
	}
	defer runtime.KeepAlive(files)
	fds := make([]int, 0, len(files))
	for _, f := range files {
		// Not Fd: that may make the descriptor a blocking one, also for its owner.
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return err
		}
	}
	n, _, err := conn.WriteMsgUnix(text, unix.UnixRights(fds...), nil)
	if err == nil && n < len(text) {
		_, err = conn.Write(text[n:])
	}
	return err
}

// reason reads an error's text: a JSON list of strings that go from the outer to the inner cause, plain text with older versions.
func reason(body io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(body, 4<<10))
	if err != nil && len(b) == 0 {
		return ""
	}
	var chain []string
	text := string(b)
	if json.Unmarshal(b, &chain) == nil {
		text = strings.Join(chain, ": ")
	}
	text = process.Printable(strings.ReplaceAll(text, "\n", " "))
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:500], "") + "…"
	}
	return text
}

// isStatus says whether the monitor answered with this status.
func isStatus(err error, status int) bool {
	var e *apiError
	return errors.As(err, &e) && e.Status == status
}
