package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

const (
	// startTimeout bounds loading the module and logging in; modules that reach over a network take seconds.
	startTimeout = 30 * time.Second
	// endTime is how long a helper may take to finalise its module.
	endTime = 5 * time.Second
	// maxBlindLogins is how often a helper may vanish while the token looks at the PIN: each may have been a wrong one.
	maxBlindLogins = 2
)

// errNever is wrapped by errors after which no helper is started again.
var errNever = errors.New("it is not tried again")

// start launches a helper and waits until it is ready.
func (c *Client) start(ctx context.Context) (*conn, *process, error) {
	program, args, env, err := c.cfg.command()
	if err != nil {
		return nil, nil, err
	}
	p, sock, err := launch(program, args, env)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = sock.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err = sock.SetDeadline(time.Now().Add(startTimeout))
	login := false
	if err == nil {
		login, err = greet(func() (link.Frame, error) { return link.Read(sock) })
	}
	if err == nil && stop() { // when it did not stop, ctx ended
		err = sock.SetDeadline(time.Time{})
	} else if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		c.blind = 0
		return newConn(sock, c.cfg.sessions(), c.cfg.timeout()), p, nil
	}
	sock.Close()
	var refused *link.Failure
	told := errors.As(err, &refused)
	grace := time.Duration(0)
	if told { // it ends by itself, in order
		grace = endTime
	}
	exit := p.end(grace)
	switch {
	case told && refused.Status == link.StatusPIN:
		return nil, nil, fmt.Errorf("%w; %w", err, errNever)
	case told:
		return nil, nil, err
	case login && ctx.Err() == nil:
		if c.blind++; c.blind >= maxBlindLogins {
			return nil, nil, fmt.Errorf("%s ended %d times (%v) while it logged in, the token may count wrong PINs; %w",
				helperName, c.blind, exit, errNever)
		}
	}
	return nil, nil, fmt.Errorf("starting %s: %w (%v)", helperName, err, exit)
}

// greet reads what a helper says by itself, and tells whether it has begun to log in.
func greet(read func() (link.Frame, error)) (login bool, err error) {
	for {
		f, err := read()
		switch {
		case err != nil:
			return login, err
		case f.ID != 0:
			return login, fmt.Errorf("an answer to request %d before any was made: %w", f.ID, link.ErrFrame)
		case f.Code == byte(link.StatusOK) && len(f.Fields) == 0 && login:
			return login, nil
		case f.Code == byte(link.StatusLogin) && len(f.Fields) == 0 && !login:
			login = true
		default:
			failure, err := link.FailureOf(f)
			if err != nil {
				return login, err
			}
			return login, failure
		}
	}
}
