// Package trace records how a sandbox and its containers come up, step by step.
//
// A Recorder belongs to one sandbox. Each step is one line in a file when it begins and one when it ends, written at once and never
// changed, so that whoever reads the file (`cloister trace`) sees what is going on, and a process that is killed leaves what it was
// doing: a step that began and did not end. The file has a bound; what does not fit is counted and lost, the beginning is kept.
//
// With an Exporter the steps also go to a collector as OpenTelemetry spans. No step waits for the collector. The texts of errors stay
// on the node: they may name what the pod's owner would not tell others.
//
// What the guest says about itself is kept apart: its names and times are bounded and marked as claimed, since the host does not
// trust the guest.
//
// A nil *Recorder records nothing, so that callers need not ask whether tracing is on.
package trace

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cloister/cloister/host/process"
)

// FileName is what the file of a sandbox is called in its directory.
const FileName = "trace.jsonl"

// Bounds of what is recorded.
const (
	// DefaultLimit is the size of a file, in bytes: room for some hundred steps.
	DefaultLimit = 256 << 10
	maxName      = 64
	maxKey       = 64
	maxValue     = 256
	maxAttrs     = 8
	maxError     = 512
	// endMost is the longest line that ends a step: quotes and backslashes take two bytes.
	endMost = 2*maxError + 128
	// maxQueue is how many spans wait for the collector.
	maxQueue = 512
)

// Config says what is recorded, and where.
type Config struct {
	// File gets one line of JSON for each event; empty keeps none. A file that is there is replaced.
	File string
	// Limit is the most bytes the file gets; 0 is DefaultLimit.
	Limit int64
	// Name, Namespace and ID are those of the sandbox.
	Name, Namespace, ID string
	// Attrs are about the whole sandbox, for example its VMM.
	Attrs []Attr
	// Began is what times are relative to; zero is now. Steps that began earlier begin at 0.
	Began time.Time
	// Exporter sends the steps to a collector; nil sends none.
	Exporter *Exporter
	// Traceparent is the W3C trace context of who asked for the sandbox; empty or malformed begins a trace of our own.
	Traceparent string
}

// Attr is something said about a step: never a secret, and nothing that a pod's owner would not show to the node's.
type Attr struct{ Key, Value string }

// String is an attribute with a text, of which 256 bytes are kept.
func String(key, value string) Attr { return Attr{key, value} }

// Recorder records the steps of one sandbox. It may be used by several goroutines.
type Recorder struct {
	began    time.Time
	exporter *Exporter // nil when this trace is not sent
	about    []Attr
	traceID  [16]byte
	parent   [8]byte // the span of who asked for the sandbox, or zero
	flags    byte

	mu      sync.Mutex
	file    *os.File // nil when there is none, or no longer
	left    int64
	last    int // number of the last step
	lost    int
	claimed int
	err     error
	closed  bool
	queue   []span
	sending chan struct{} // closed when the delivery that runs has ended; nil when none runs
}

// line is one line of the file. Times are nanoseconds since the beginning.
type line struct {
	// Of the first line.
	Trace     int    `json:"trace,omitempty"`
	Name      string `json:"name,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	ID        string `json:"id,omitempty"`
	TraceID   string `json:"trace_id,omitempty"`
	Began     string `json:"began,omitempty"`
	// Of steps.
	N       int               `json:"n,omitempty"`
	In      int               `json:"in,omitempty"`
	Step    string            `json:"step,omitempty"`
	At      *int64            `json:"at,omitempty"`
	End     *int64            `json:"end,omitempty"`
	Error   string            `json:"error,omitempty"`
	Claimed bool              `json:"claimed,omitempty"`
	Attrs   map[string]string `json:"attrs,omitempty"`
	// Of the last line, when something was lost.
	Lost int `json:"lost,omitempty"`
}

// New begins to record. Without a file and without an exporter it returns nil, which records nothing. A file that cannot be written
// keeps nobody from anything: see Err.
func New(c Config) *Recorder {
	if c.File == "" && c.Exporter == nil {
		return nil
	}
	r := &Recorder{began: c.Began, left: c.Limit, about: bounded(c.Attrs)}
	if r.began.IsZero() {
		r.began = time.Now()
	}
	if r.left <= 0 {
		r.left = DefaultLimit
	}
	head := line{Trace: 1, Name: text(c.Name, maxValue), Namespace: text(c.Namespace, maxValue), ID: text(c.ID, maxValue),
		Began: r.began.UTC().Format(time.RFC3339Nano), Attrs: asMap(r.about)}
	if c.Exporter != nil {
		var known bool
		if r.traceID, r.parent, r.flags, known = parseTraceparent(c.Traceparent); !known {
			_, _ = rand.Read(r.traceID[:]) // never fails (crypto/rand)
			r.flags = sampled(r.traceID, c.Exporter.ratio)
		}
		if r.flags&1 != 0 {
			r.exporter = c.Exporter
			r.about = append([]Attr{{"k8s.pod.name", head.Name}, {"k8s.namespace.name", head.Namespace},
				{"cloister.sandbox", head.ID}}, r.about...)
		}
		head.TraceID = fmt.Sprintf("%x", r.traceID)
	}
	if c.File == "" && r.exporter == nil {
		return nil // this trace is none of those that are sent
	}
	if c.File != "" {
		f, err := os.OpenFile(c.File, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
		if err != nil {
			r.err = fmt.Errorf("recording the steps of sandbox %s: %w", head.ID, err)
		} else {
			r.file = f
			r.write(head)
		}
	}
	return r
}

// sampled decides by the trace's id, as OpenTelemetry does it: whoever sees the id decides the same.
func sampled(id [16]byte, ratio float64) byte {
	if ratio >= 1 || float64(binary.BigEndian.Uint64(id[8:])>>1) < ratio*math.MaxInt64 {
		return 1
	}
	return 0
}

// Err is why there is no file, or why it does not go on; nil when all is well.
func (r *Recorder) Err() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// step is what a context carries.
type step struct {
	r  *Recorder
	n  int // 0 when it is not in the file
	id [8]byte
}

type stepKey struct{}

func fromContext(ctx context.Context) *step {
	s, _ := ctx.Value(stepKey{}).(*step)
	return s
}

func nop(error) {}

// Step begins a step inside the one in ctx. The function it returns ends it, once; an error marks it as failed. Steps may overlap.
func (r *Recorder) Step(ctx context.Context, name string, attrs ...Attr) (context.Context, func(error)) {
	if r == nil {
		return ctx, nop
	}
	start := time.Now()
	parent, s := fromContext(ctx), &step{r: r}
	if parent != nil && parent.r != r {
		parent = nil
	}
	name, attrs = text(name, maxName), bounded(attrs)
	r.begin(s, parent, name, r.since(start), attrs)
	var once sync.Once
	return context.WithValue(ctx, stepKey{}, s), func(err error) {
		once.Do(func() { r.end(s, parent, name, start, time.Now(), attrs, err) })
	}
}

// Step begins a step of the recorder whose step is in ctx; without one it does nothing. It is for packages that know no recorder.
func Step(ctx context.Context, name string, attrs ...Attr) (context.Context, func(error)) {
	s := fromContext(ctx)
	if s == nil {
		return ctx, nop
	}
	return s.r.Step(ctx, name, attrs...)
}

// Past records a step that is over, inside the one in ctx: for what was measured before there was a recorder, or elsewhere.
func (r *Recorder) Past(ctx context.Context, name string, start, end time.Time, err error, attrs ...Attr) {
	if r == nil {
		return
	}
	parent, s := fromContext(ctx), &step{r: r}
	if parent != nil && parent.r != r {
		parent = nil
	}
	name, attrs = text(name, maxName), bounded(attrs)
	r.begin(s, parent, name, r.since(start), attrs)
	r.end(s, parent, name, start, end, attrs, err)
}

func (r *Recorder) since(t time.Time) int64 { return max(0, t.Sub(r.began).Nanoseconds()) }

func (r *Recorder) begin(s, parent *step, name string, at int64, attrs []Attr) {
	if r.exporter != nil {
		_, _ = rand.Read(s.id[:])
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil || r.closed {
		return
	}
	l := line{N: r.last + 1, Step: name, At: &at, Attrs: asMap(attrs)}
	if parent != nil {
		l.In = parent.n
	}
	if r.writeReserving(l, endMost) {
		r.last++
		s.n = r.last
		r.left -= endMost
	}
}

func (r *Recorder) end(s, parent *step, name string, start, end time.Time, attrs []Attr, err error) {
	if end.Before(start) {
		end = start
	}
	r.mu.Lock()
	if s.n > 0 && !r.closed {
		at := r.since(end)
		l := line{N: s.n, End: &at}
		if err != nil {
			if l.Error = text(err.Error(), maxError); l.Error == "" {
				l.Error = "failed"
			}
		}
		r.left += endMost
		r.write(l)
	}
	if r.exporter == nil || r.closed {
		r.mu.Unlock()
		return
	}
	x := span{id: s.id, parent: r.parent, name: name, start: start, end: end, attrs: attrs, failed: err != nil}
	if parent != nil {
		x.parent = parent.id
	}
	if len(r.queue) < maxQueue {
		r.queue = append(r.queue, x)
	} else {
		r.exporter.dropped.Add(1)
	}
	if parent == nil || len(r.queue) >= maxQueue/4 {
		r.deliver()
	}
	r.mu.Unlock()
}

// writeReserving writes a line if that and so many bytes more fit.
func (r *Recorder) writeReserving(l line, more int64) bool {
	if r.file == nil {
		return false
	}
	text := marshal(l)
	if int64(len(text))+more+lostMost > r.left {
		r.lost++
		return false
	}
	r.writeText(text)
	return r.file != nil
}

// lostMost is kept for the line that says how much was lost.
const lostMost = 64

func (r *Recorder) write(l line) { r.writeText(marshal(l)) }

// writeText writes a whole line in one call, so that a reader never sees lines of two processes mixed.
func (r *Recorder) writeText(text []byte) {
	if r.file == nil {
		return
	}
	r.left -= int64(len(text))
	if _, err := r.file.Write(text); err != nil {
		r.err = fmt.Errorf("recording the steps of a sandbox: %w", err)
		r.file.Close()
		r.file = nil
	}
}

func marshal(l line) []byte {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(l) // it has no type that can fail
	return []byte(b.String())
}

// Close ends the file and delivers what waits for the collector, as long as ctx allows. Steps that have not ended stay so.
func (r *Recorder) Close(ctx context.Context) error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		if r.lost > 0 {
			r.write(line{Lost: r.lost})
		}
		if r.file != nil {
			if err := r.file.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
				r.err = errors.Join(r.err, fmt.Errorf("recording the steps of a sandbox: %w", err))
			}
			r.file = nil
		}
	}
	err := r.err
	r.mu.Unlock()
	r.flush(ctx)
	return err
}

// bounded is a copy of attributes, as many and as long as are kept.
func bounded(attrs []Attr) []Attr {
	if len(attrs) == 0 {
		return nil
	}
	out := make([]Attr, 0, min(len(attrs), maxAttrs))
	for _, a := range attrs[:min(len(attrs), maxAttrs)] {
		out = append(out, Attr{text(a.Key, maxKey), text(a.Value, maxValue)})
	}
	return out
}

func asMap(attrs []Attr) map[string]string {
	if len(attrs) == 0 {
		return nil
	}
	m := make(map[string]string, len(attrs))
	for _, a := range attrs {
		m[a.Key] = a.Value
	}
	return m
}

// text is on one line, without what could steer a terminal, and at most so many bytes.
func text(s string, most int) string {
	if len(s) > 4*most {
		s = s[:4*most]
	}
	s = process.Printable(strings.ReplaceAll(s, "\n", " "))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most-2], "") + ".."
	}
	return s
}
