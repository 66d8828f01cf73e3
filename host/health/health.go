// Package health tells a guest that is dead from one that is slow, paused, or asleep together with the host.
//
// A monitor asks the guest's agent again and again. There is one rule: a guest is dead when it has given no good answer for the timeout,
// however it failed, by silence or by errors. What counts is time in which the guest could have answered:
//
//   - While the machine is paused no question is asked, and the time begins anew when it runs again.
//   - Time in which this process did not run itself does not count: the host was suspended, was itself a stopped virtual machine, or had no
//     processor to give. The monitor looks at the clock in small steps, and a step that took much longer than it should counts as one.
//
// The end of a machine is not found here: its monitor says so at once.
package health

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cloister/cloister/wire/agent"
)

// Defaults of the configuration.
const (
	DefaultInterval = 10 * time.Second
	DefaultTimeout  = 90 * time.Second
)

// stepsPerTimeout is how often the clock is looked at within one timeout.
const stepsPerTimeout = 30

// DeadError says that a guest gave no good answer.
type DeadError struct {
	// Silent is for how long.
	Silent time.Duration
	// Last is the last answer since the last good one, nil when there was none.
	Last error
}

func (e *DeadError) Error() string {
	how := "it did not answer"
	if e.Last != nil {
		how = e.Last.Error()
	}
	return fmt.Sprintf("the guest has given no sign of health for %s: %s (hint: see the guest's console; timeouts.health_check is how long"+
		" this may last)", e.Silent.Round(time.Second), how)
}

func (e *DeadError) Unwrap() error { return e.Last }

// Config says what to ask, and how often.
type Config struct {
	// Check asks the guest once. It returns when its context ends.
	Check func(ctx context.Context) error
	// Interval is the pause between questions, DefaultInterval when 0; Timeout is how long there may be no good answer, DefaultTimeout
	// when 0.
	Interval, Timeout time.Duration
	// Clock is the system's when nil.
	Clock Clock
}

// Clock is what the monitor knows of time.
type Clock interface {
	Now() time.Time
	// NewTimer is as time.NewTimer; stop may be called at any time.
	NewTimer(d time.Duration) (fires <-chan time.Time, stop func())
}

// SystemClock is the time of this machine.
type SystemClock struct{}

// Now is the time.
func (SystemClock) Now() time.Time { return time.Now() }

// NewTimer makes a timer of package time.
func (SystemClock) NewTimer(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}

// Agent is a Check that asks the agent's health service.
func Agent(h agent.HealthService) func(context.Context) error {
	return func(ctx context.Context) error {
		r, err := h.Check(ctx, &agent.CheckRequest{})
		if err != nil {
			return fmt.Errorf("asking the guest for its health: %w", err)
		}
		if s := r.GetStatus(); s != agent.HealthCheckResponse_SERVING {
			return fmt.Errorf("the guest's agent says that it is %s", s)
		}
		return nil
	}
}

// Monitor watches one guest. Pause and Resume may be called at any time.
type Monitor struct {
	cfg     Config
	mu      sync.Mutex
	paused  int
	pauses  uint64        // how many there were
	changed chan struct{} // replaced at each change of paused
}

// New makes a monitor; Run starts it.
func New(cfg Config) (*Monitor, error) {
	if cfg.Check == nil || cfg.Interval < 0 || cfg.Timeout < 0 {
		return nil, errors.New("watching the guest's health: expected a check, and no negative times")
	}
	if cfg.Interval == 0 {
		cfg.Interval = DefaultInterval
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.Clock == nil {
		cfg.Clock = SystemClock{}
	}
	return &Monitor{cfg: cfg, changed: make(chan struct{})}, nil
}

// Pause is called before the machine is paused. Each Pause needs a Resume.
func (m *Monitor) Pause() { m.change(1) }

// Resume is called after the machine runs again.
func (m *Monitor) Resume() { m.change(-1) }

func (m *Monitor) change(by int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = max(0, m.paused+by)
	if by > 0 {
		m.pauses++
	}
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *Monitor) state() (paused bool, pauses uint64, changed <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused > 0, m.pauses, m.changed
}

// Run watches until ctx ends, which is no error, or the guest is dead, which is a *DeadError.
func (m *Monitor) Run(ctx context.Context) error {
	w := watch{m: m, step: max(m.cfg.Timeout/stepsPerTimeout, time.Millisecond)}
	defer w.cancel()
	return w.run(ctx)
}

// watch is the state of one Run.
type watch struct {
	m      *Monitor
	step   time.Duration
	silent time.Duration // counted since the last good answer
	rest   time.Duration // until the next question
	last   error         // the last answer since the last good one
	pauses uint64        // those that are known

	answer chan error         // of the question that is open, nil without one
	stop   context.CancelFunc // ends it
}

// ask begins a question. There is one at a time, so that a guest that hangs costs no more than that.
func (w *watch) ask(ctx context.Context) {
	ctx, w.stop = context.WithCancel(ctx)
	answer := make(chan error, 1)
	w.answer = answer
	go func() { answer <- w.m.cfg.Check(ctx) }()
}

// cancel takes a question back.
func (w *watch) cancel() {
	if w.answer != nil {
		w.stop()
		w.answer = nil
	}
}

func (w *watch) run(ctx context.Context) error {
	cfg := w.m.cfg
	for {
		paused, pauses, changed := w.m.state()
		if pauses != w.pauses { // also of one that is over already
			w.cancel()
			w.silent, w.rest, w.last, w.pauses = 0, 0, nil, pauses
		}
		if paused {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
			continue
		}
		if w.answer == nil && w.rest <= 0 {
			w.ask(ctx)
		}
		before := cfg.Clock.Now()
		fires, stop := cfg.Clock.NewTimer(w.step)
		select {
		case <-ctx.Done():
			stop()
			return nil
		case <-changed:
		case err := <-w.answer:
			w.stop()
			w.answer, w.last, w.rest = nil, err, cfg.Interval
			if err == nil {
				w.silent = 0
				stop()
				continue
			}
			// The step is cut short and counted below.
		case <-fires:
		}
		stop()
		w.count(cfg.Clock.Now().Sub(before))
		if w.silent >= cfg.Timeout {
			if err := ctx.Err(); err != nil {
				return nil
			}
			return &DeadError{Silent: w.silent, Last: w.last}
		}
	}
}

// count takes one look at the clock. One that took longer than twice its time says that nothing ran.
func (w *watch) count(elapsed time.Duration) {
	elapsed = min(max(elapsed, 0), 2*w.step)
	w.silent += elapsed
	w.rest -= elapsed
}
