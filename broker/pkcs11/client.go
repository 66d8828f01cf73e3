package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cloister/cloister/broker/pkcs11/link"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/store"
)

const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = 30 * time.Second
	// maxTries is how often a request is made that nobody knows the end of.
	maxTries = 2
)

// Client works with one token. It is safe for use by several goroutines.
type Client struct {
	cfg    Config
	log    *slog.Logger
	cancel context.CancelFunc
	ended  chan struct{}
	blind  int // of start

	mu    sync.Mutex
	state state
}

// state is a helper that is ready, or why there is none, or neither while one starts again.
type state struct {
	conn    *conn
	pid     int
	err     error
	changed chan struct{} // closed when there is another state
}

// Open starts the helper and waits until the token is ready. ctx bounds the start only; log may be nil.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, log: log.With("token", cfg.TokenLabel+cfg.TokenSerial), ended: make(chan struct{}),
		state: state{changed: make(chan struct{})}}
	first, p, err := c.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening the PKCS#11 token: %w", err)
	}
	c.set(first, p.pid(), nil)
	var life context.Context
	life, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go c.supervise(life, first, p)
	return c, nil
}

// Close ends the helper.
func (c *Client) Close() error {
	c.cancel()
	<-c.ended
	return nil
}

func (c *Client) set(conn *conn, pid int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.state.changed)
	c.state = state{conn, pid, err, make(chan struct{})}
}

func (c *Client) current() state {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// supervise keeps a helper running until ctx ends.
func (c *Client) supervise(ctx context.Context, live *conn, p *process) {
	defer close(c.ended)
	delay := firstDelay
	for {
		began := time.Now()
		select {
		case <-ctx.Done():
			live.fail(errClosed) // the helper sees the end of the link
			c.set(nil, 0, errClosed)
			_ = p.end(endTime)
			return
		case <-live.dead:
		}
		c.set(nil, 0, nil)
		exit := p.end(0)
		if time.Since(began) >= maxDelay {
			delay = firstDelay
		}
		c.log.Error("PKCS#11 helper ended", "reason", live.reason(), "exit", fmt.Sprint(exit), "restart_in", delay)
		for live = nil; live == nil; {
			timer := time.NewTimer(delay)
			select {
			case <-ctx.Done():
				timer.Stop()
				c.set(nil, 0, errClosed)
				return
			case <-timer.C:
			}
			delay = min(2*delay, maxDelay)
			var err error
			if live, p, err = c.start(ctx); err != nil {
				c.set(nil, 0, fmt.Errorf("the PKCS#11 token is not available: %w", err))
				c.log.Error("PKCS#11 helper does not start", "reason", err, "restart_in", delay)
			}
			if errors.Is(err, errNever) {
				return
			}
		}
		c.set(live, p.pid(), nil)
		c.log.Info("PKCS#11 helper is ready again")
	}
}

// ready returns a helper. While one starts again it waits; when the last start failed it returns the reason.
func (c *Client) ready(ctx context.Context) (*conn, error) {
	for {
		s := c.current()
		if s.err != nil {
			return nil, s.err
		}
		if s.conn != nil {
			select {
			case <-s.conn.dead:
			default:
				return s.conn, nil
			}
		}
		select {
		case <-s.changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the helper %s: %w", helperName, ctx.Err())
		}
	}
}

// do makes a request. One whose helper went away is made once more when that does no harm.
func (c *Client) do(ctx context.Context, op link.Op, fields ...[]byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, maxTries*c.cfg.timeout())
	defer cancel()
	for try := 1; ; try++ {
		value, err := c.once(ctx, op, fields)
		if err == nil {
			return value, nil
		}
		if try == maxTries || !op.Repeatable() || !errors.Is(err, errLost) {
			return nil, fmt.Errorf("PKCS#11 %s: %w", op, err)
		}
	}
}

func (c *Client) once(ctx context.Context, op link.Op, fields [][]byte) ([]byte, error) {
	live, err := c.ready(ctx)
	if err != nil {
		return nil, err
	}
	value, err := live.do(ctx, op, fields)
	switch link.StatusOf(err) {
	case link.StatusLost:
		err = fmt.Errorf("%w: %w", errLost, err)
		live.fail(err) // it is about to end by itself
	case link.StatusNotFound:
		err = fmt.Errorf("%w: %w", store.ErrNotFound, err)
	case link.StatusFull:
		err = fmt.Errorf("%w: %w", resource.ErrQuota, err)
	case link.StatusReadOnly:
		err = fmt.Errorf("%w: %w", resource.ErrReadOnly, err)
	}
	return value, err
}

// Get returns the secret with a label. A missing one is an error that wraps store.ErrNotFound.
func (c *Client) Get(ctx context.Context, label string) ([]byte, error) {
	return c.do(ctx, link.OpGet, []byte(label))
}

// Put makes or replaces the secret with a label; 1 to link.MaxValue bytes. Errors may wrap resource.ErrQuota or ErrReadOnly.
func (c *Client) Put(ctx context.Context, label string, value []byte) error {
	if len(value) == 0 || len(value) > link.MaxValue {
		return fmt.Errorf("PKCS#11 put: %w", link.Fail(link.StatusBadRequest, "the secret has %d bytes, a token takes 1 to %d",
			len(value), link.MaxValue))
	}
	_, err := c.do(ctx, link.OpPut, []byte(label), value)
	return err
}

// Delete removes the secret with a label.
func (c *Client) Delete(ctx context.Context, label string) error {
	_, err := c.do(ctx, link.OpDelete, []byte(label))
	return err
}

// Encrypt encrypts to the RSA key with a label, with RSA-OAEP and a hash (see Hash).
func (c *Client) Encrypt(ctx context.Context, key, hash string, plaintext []byte) ([]byte, error) {
	return c.crypt(ctx, link.OpEncrypt, key, hash, plaintext)
}

// Decrypt decrypts with the RSA key with a label.
func (c *Client) Decrypt(ctx context.Context, key, hash string, ciphertext []byte) ([]byte, error) {
	return c.crypt(ctx, link.OpDecrypt, key, hash, ciphertext)
}

// Wrap encrypts with the storage key with a label and binds the value to a context.
func (c *Client) Wrap(ctx context.Context, key, hash string, plaintext, binding []byte) ([]byte, error) {
	return c.crypt(ctx, link.OpWrap, key, hash, plaintext, binding)
}

// Unwrap decrypts what Wrap made for the same context.
func (c *Client) Unwrap(ctx context.Context, key, hash string, wrapped, binding []byte) ([]byte, error) {
	return c.crypt(ctx, link.OpUnwrap, key, hash, wrapped, binding)
}

func (c *Client) crypt(ctx context.Context, op link.Op, key, hash string, data []byte, more ...[]byte) ([]byte, error) {
	most := link.MaxValue
	if op == link.OpUnwrap || op == link.OpDecrypt {
		most += 1 << 10
	}
	if len(data) == 0 || len(data) > most {
		return nil, fmt.Errorf("PKCS#11 %s: %w", op, link.Fail(link.StatusBadRequest,
			"%d bytes are given, a token takes 1 to %d", len(data), most))
	}
	return c.do(ctx, op, append([][]byte{[]byte(key), []byte(hash), data}, more...)...)
}
