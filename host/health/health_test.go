package health

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/wire/agent"
)

// clock is a time that passes when the test says so.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[chan time.Time]time.Time
	armed  chan struct{} // gets one for each timer that was made
}

func newClock() *clock {
	return &clock{now: time.Unix(1000, 0), timers: map[chan time.Time]time.Time{}, armed: make(chan struct{}, 1000)}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) NewTimer(d time.Duration) (<-chan time.Time, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.timers[ch] = c.now.Add(d)
	c.armed <- struct{}{}
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.timers, ch)
	}
}

// pass lets time go by, in one leap.
func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for ch, at := range c.timers {
		if !at.After(c.now) {
			ch <- c.now
			delete(c.timers, ch)
		}
	}
}

// harness runs a monitor with questions that the test answers.
type harness struct {
	t         *testing.T
	clock     *clock
	m         *Monitor
	questions chan chan error
	ended     chan error
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{t: t, clock: newClock(), questions: make(chan chan error, 100), ended: make(chan error, 1)}
	var err error
	h.m, err = New(Config{Interval: 10 * time.Second, Timeout: 90 * time.Second, Clock: h.clock, Check: func(ctx context.Context) error {
		q := make(chan error, 1)
		h.questions <- q
		select {
		case err := <-q:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { h.ended <- h.m.Run(ctx) }()
	t.Cleanup(cancel)
	return h
}

// wait takes one value from a channel, or ends the test.
func wait[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("waiting for " + what)
		panic("unreachable")
	}
}

// step waits until the monitor sleeps and lets one of its steps pass, the given time long.
func (h *harness) step(d time.Duration) {
	h.t.Helper()
	wait(h.t, "the monitor to sleep", h.clock.armed)
	h.clock.pass(d)
}

// steps lets an ordinary time pass, until the monitor has ended.
func (h *harness) steps(total time.Duration) error {
	h.t.Helper()
	for ; total > 0; total -= 3 * time.Second {
		select {
		case err := <-h.ended:
			return err
		case <-h.clock.armed:
			h.clock.pass(3 * time.Second)
		case <-time.After(20 * time.Second):
			h.t.Fatal("the monitor does nothing")
		}
	}
	return nil
}

func (h *harness) alive(when string) {
	h.t.Helper()
	select {
	case err := <-h.ended:
		h.t.Fatalf("%s: the monitor ended with %v", when, err)
	default:
	}
}

func (h *harness) dead() *DeadError {
	h.t.Helper()
	var dead *DeadError
	if err := wait(h.t, "the end", h.ended); !errors.As(err, &dead) {
		h.t.Fatalf("got %v, expected a *DeadError", err)
	}
	return dead
}

func TestHealthy(t *testing.T) {
	h := newHarness(t)
	for range 20 {
		wait(t, "a question", h.questions) <- nil
		// After the answer the monitor begins a new step; four of them are the interval.
		wait(t, "a step", h.clock.armed)
		for range 4 {
			h.step(3 * time.Second)
		}
	}
	h.alive("after 20 good answers")
}

func TestSilent(t *testing.T) {
	h := newHarness(t)
	wait(t, "a question", h.questions)
	if err := h.steps(87 * time.Second); err != nil {
		t.Fatal("too early:", err)
	}
	h.step(3 * time.Second)
	dead := h.dead()
	if dead.Last != nil || dead.Silent != 90*time.Second || !strings.Contains(dead.Error(), "hint: ") {
		t.Errorf("got %v", dead)
	}
	if len(h.questions) != 0 {
		t.Error("a guest that hangs was asked again")
	}
}

// TestErrors has answers, but no good one.
func TestErrors(t *testing.T) {
	h := newHarness(t)
	broken := errors.New("broken")
	for range 7 {
		wait(t, "a question", h.questions) <- broken
		wait(t, "a step", h.clock.armed)
		for range 4 {
			h.step(3 * time.Second)
		}
	}
	h.alive("after 84 seconds")
	wait(t, "a question", h.questions)
	var dead *DeadError
	if err := h.steps(time.Minute); !errors.As(err, &dead) || !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// TestPaused has a machine that is paused in the middle of a question, for long.
func TestPaused(t *testing.T) {
	h := newHarness(t)
	wait(t, "a question", h.questions)
	if err := h.steps(60 * time.Second); err != nil {
		t.Fatal(err)
	}
	wait(t, "a step", h.clock.armed)
	h.m.Pause()
	h.m.Pause()
	h.m.Resume()
	h.clock.pass(time.Hour)
	h.alive("while paused")
	h.m.Resume()
	wait(t, "a new question", h.questions)
	if err := h.steps(84 * time.Second); err != nil {
		t.Error("the time before the pause was counted:", err)
	}
}

// TestSuspended has a host that sleeps for an hour in the middle of a question.
func TestSuspended(t *testing.T) {
	h := newHarness(t)
	wait(t, "a question", h.questions)
	for range 10 {
		h.step(time.Hour)
	}
	wait(t, "a step", h.clock.armed)
	h.alive("after the host slept ten times")
}

func TestEnd(t *testing.T) {
	m, err := New(Config{Check: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	cancel()
	if err := wait(t, "the end", ended); err != nil {
		t.Error(err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no check was accepted")
	}
}

// TestSystemClock is a guest that hangs, in real time.
func TestSystemClock(t *testing.T) {
	m, err := New(Config{Timeout: 50 * time.Millisecond, Check: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }})
	if err != nil {
		t.Fatal(err)
	}
	var dead *DeadError
	if err := m.Run(t.Context()); !errors.As(err, &dead) {
		t.Errorf("got %v", err)
	}
}

type service struct {
	agent.HealthService
	status agent.HealthCheckResponse_ServingStatus
	err    error
}

func (s service) Check(context.Context, *agent.CheckRequest) (*agent.HealthCheckResponse, error) {
	return &agent.HealthCheckResponse{Status: s.status}, s.err
}

func TestAgent(t *testing.T) {
	for want, s := range map[string]service{
		"": {status: agent.HealthCheckResponse_SERVING}, "NOT_SERVING": {status: agent.HealthCheckResponse_NOT_SERVING},
		"health: gone": {err: errors.New("gone")},
	} {
		err := Agent(s)(t.Context())
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, expected %q", err, want)
		}
	}
}
