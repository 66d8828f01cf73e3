package trace

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"time"
)

// Bounds of what a guest can have recorded.
const (
	maxClaims    = 64
	maxGuestLine = 4 << 10
	maxGuestLog  = 1 << 20
)

// claimName is what names of a guest's steps may look like.
var claimName = regexp.MustCompile(`^[a-z0-9][a-z0-9 ._-]{0,31}$`)

// Guest records a step that the guest says it has done. Times outside of the sandbox's life so far are cut to it; names that look
// like none, and more steps than 64, are dropped.
func (r *Recorder) Guest(name string, start time.Time, took time.Duration) {
	if r == nil || !claimName.MatchString(name) {
		return
	}
	now := r.since(time.Now())
	at := min(r.since(start), now)
	end := min(max(0, took.Nanoseconds()), now-at) + at
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.claimed >= maxClaims || r.closed {
		r.lost++
		return
	}
	r.claimed++
	if r.writeReserving(line{N: r.last + 1, Step: name, At: &at, End: &end, Claimed: true}, 0) {
		r.last++
	}
}

// GuestLog reads the steps of the boot out of the guest's log, as it comes from the guest's log port. ready is when the guest gave its
// first answer: the guest's clock is set to it. What is written to the result is never refused.
func (r *Recorder) GuestLog(ready time.Time) io.Writer {
	if r == nil {
		return io.Discard
	}
	return &guestLog{ready: ready, emit: func(c Claim) { r.Guest(c.Name, c.Start, c.Took) }}
}

// Claim is a step that a guest says it has done, at times of the host's clock.
type Claim struct {
	Name  string
	Start time.Time
	Took  time.Duration
}

// ReadGuestLog reads the steps of the boot out of a guest's log that was kept. Nothing in it is an error.
func ReadGuestLog(log io.Reader, ready time.Time) []Claim {
	var claims []Claim
	g := &guestLog{ready: ready, emit: func(c Claim) {
		if len(claims) < maxClaims && claimName.MatchString(c.Name) {
			claims = append(claims, c)
		}
	}}
	_, _ = io.Copy(g, io.LimitReader(log, maxGuestLog))
	return claims
}

// guestLog picks the lines about the boot out of a guest's log. They count when the guest has said that it is ready.
type guestLog struct {
	ready time.Time
	emit  func(Claim)
	line  []byte
	seen  int
	done  bool
	steps []guestStep
}

// guestStep is a line of the guest's log.
type guestStep struct {
	Time   time.Time     `json:"ts"`
	Msg    string        `json:"msg"`
	Step   string        `json:"step"`
	Took   time.Duration `json:"took"`
	Kernel time.Duration `json:"kernel"`
}

// Write is part of io.Writer. It takes everything.
func (g *guestLog) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && !g.done {
		before, after, whole := bytes.Cut(p, []byte("\n"))
		if g.seen += len(before) + 1; g.seen > maxGuestLog {
			g.done = true
			break
		}
		if room := maxGuestLine - len(g.line); room > 0 {
			g.line = append(g.line, before[:min(len(before), room)]...)
		}
		p = after
		if whole {
			g.take()
			g.line = g.line[:0]
		}
	}
	if g.done {
		g.line, g.steps = nil, nil
	}
	return n, nil
}

func (g *guestLog) take() {
	if !bytes.Contains(g.line, []byte(`"boot step done"`)) && !bytes.Contains(g.line, []byte(`"guest ready"`)) {
		return
	}
	var s guestStep
	if json.Unmarshal(g.line, &s) != nil || s.Time.IsZero() {
		return
	}
	switch s.Msg {
	case "boot step done":
		if len(g.steps) < maxClaims {
			g.steps = append(g.steps, s)
		}
	case "guest ready":
		g.done = true
		shift := g.ready.Sub(s.Time)
		began := g.ready.Add(-s.Took)
		g.emit(Claim{"kernel", began.Add(-s.Kernel), s.Kernel})
		g.emit(Claim{"init", began, s.Took})
		for _, x := range g.steps {
			g.emit(Claim{x.Step, x.Time.Add(shift).Add(-x.Took), x.Took})
		}
	}
}
