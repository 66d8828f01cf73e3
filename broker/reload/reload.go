// Package reload keeps what the broker reads from files current without a restart.
//
// Everything that can be read again is an Item: files to look at, and a function that reads them, checks what they say and only then
// puts it in the place of the old. The Watcher calls it when the content of the files has changed and on SIGHUP. What cannot be read
// leaves the old in force; the failure is logged, counted and shown in the status until a later attempt succeeds.
//
// The content of files is compared and not their times: a folder that Kubernetes swaps through a symbolic link, a file that is
// replaced and one that is written in place are all noticed, and a touched file is not.
package reload

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DefaultInterval is how often files are looked at.
const DefaultInterval = 10 * time.Second

// loadTimeout bounds one attempt: a JWK set elsewhere may not answer.
const loadTimeout = 30 * time.Second

// Item is something that can be read again.
type Item struct {
	// What names it in logs, metrics and the status, for example "tls-certificate". It is fixed text, never a path.
	What string
	// Files are files or folders. Those that do not exist count as empty until they do; addresses (https://) are not looked at.
	Files []string
	// Every makes it be read again when so much time has passed, for what comes from elsewhere; 0 means only when files change.
	Every time.Duration
	// Load reads, checks and takes over. After an error the old is still in force.
	Load func(ctx context.Context) error
}

// Status is how an item stands.
type Status struct {
	What string `json:"what"`
	// Loaded is when it was last taken over; zero means at the start of the broker.
	Loaded time.Time `json:"loaded"`
	// Error is why the latest attempt failed, and Failed since when attempts do; the old content is in force.
	Error  string    `json:"error,omitempty"`
	Failed time.Time `json:"failed,omitzero"`
}

type watched struct {
	Item
	seen   fingerprint // of the content that the latest attempt saw
	tried  time.Time
	status Status
}

// Watcher reads items again.
type Watcher struct {
	log *slog.Logger
	now func() time.Time

	work sync.Mutex // one round at a time

	mu    sync.Mutex
	items []*watched

	failures, loads *prometheus.CounterVec
}

// New makes a Watcher of items that have just been read.
func New(log *slog.Logger, now func() time.Time, items ...Item) *Watcher {
	w := &Watcher{
		log: log, now: now,
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloister_reload_failures_total", Help: "Attempts to read files again that failed, so that the old content stays in force.",
		}, []string{"what"}),
		loads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cloister_reloads_total", Help: "Times that changed files were taken over.",
		}, []string{"what"}),
	}
	for _, it := range items {
		w.Add(it)
	}
	return w
}

// Add takes up another item that has just been read.
func (w *Watcher) Add(it Item) {
	one := &watched{Item: it, seen: look(it.Files), tried: w.now(), status: Status{What: it.What}}
	w.failures.WithLabelValues(it.What)
	w.loads.WithLabelValues(it.What)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.items = append(w.items, one)
}

// Collectors are the metrics.
func (w *Watcher) Collectors() []prometheus.Collector {
	return []prometheus.Collector{w.failures, w.loads}
}

// Status tells how all items stand, in the order they were added.
func (w *Watcher) Status() []Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]Status, 0, len(w.items))
	for _, it := range w.items {
		all = append(all, it.status)
	}
	return all
}

// Check reads what has changed, what is due, and what failed before. The error joins those of all items.
func (w *Watcher) Check(ctx context.Context) error { return w.round(ctx, false) }

// All reads everything again, changed or not.
func (w *Watcher) All(ctx context.Context) error { return w.round(ctx, true) }

func (w *Watcher) round(ctx context.Context, all bool) error {
	w.work.Lock()
	defer w.work.Unlock()
	w.mu.Lock()
	items := slices.Clone(w.items)
	w.mu.Unlock()
	var errs []error
	for _, it := range items {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		// The look comes before the reading: what changes in between is seen as a change by the next round.
		now, seen := w.now(), look(it.Files)
		due := it.Every > 0 && now.Sub(it.tried) >= it.Every
		if !all && !due && seen == it.seen && it.status.Error == "" {
			continue
		}
		it.seen, it.tried = seen, now
		errs = append(errs, w.load(ctx, it, now))
	}
	return errors.Join(errs...)
}

func (w *Watcher) load(ctx context.Context, it *watched, now time.Time) error {
	bounded, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	err := it.Load(bounded)
	if ctx.Err() != nil && err != nil {
		return err // the broker ends; that says nothing about the files
	}
	w.mu.Lock()
	before := it.status
	if err == nil {
		it.status = Status{What: it.What, Loaded: now}
	} else {
		it.status.Error = err.Error()
		if before.Error == "" {
			it.status.Failed = now
		}
	}
	w.mu.Unlock()
	if err == nil {
		w.loads.WithLabelValues(it.What).Inc()
		w.log.InfoContext(ctx, "read again", "what", it.What)
		return nil
	}
	w.failures.WithLabelValues(it.What).Inc()
	if before.Error != err.Error() {
		w.log.ErrorContext(ctx, "reading again failed, the old content stays in force", "what", it.What, "error", err)
	}
	return err
}

// Run reads again until ctx ends: everything at each value of hangups (SIGHUP), what changed at each tick.
func (w *Watcher) Run(ctx context.Context, ticks <-chan time.Time, hangups <-chan struct{}) {
	for {
		// The errors have been logged and are in the status.
		select {
		case <-ctx.Done():
			return
		case <-ticks:
			_ = w.Check(ctx)
		case <-hangups:
			_ = w.All(ctx)
		}
	}
}
