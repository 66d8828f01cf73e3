package remote

import (
	"encoding/json"
	"sync"
	"time"
)

const (
	maxEntries = 1024
	maxBytes   = 8 << 20
)

// cache keeps answers for a short time. It is bounded in number and in bytes; what does not fit is asked for every time.
type cache struct {
	ttl time.Duration
	now func() time.Time

	mu      sync.Mutex
	entries map[string]entry
	bytes   int
	// epoch counts forgettings: an answer that was asked for before one is not kept after it.
	epoch uint64
}

type entry struct {
	value json.RawMessage
	asked time.Time
}

func newCache(ttl time.Duration, now func() time.Time) *cache {
	return &cache{ttl: ttl, now: now, entries: map[string]entry{}}
}

// get returns a value that was asked for less than the time to live ago. A clock that went back makes entries useless.
func (c *cache) get(name string) (json.RawMessage, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[name]
	if !ok {
		return nil, false
	}
	if age := c.now().Sub(e.asked); age < 0 || age >= c.ttl {
		c.drop(name)
		return nil, false
	}
	return e.value, true
}

// begin is to be called before the service is asked; its result belongs to put.
func (c *cache) begin() (asked time.Time, epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now(), c.epoch
}

func (c *cache) put(name string, value json.RawMessage, asked time.Time, epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ttl == 0 || epoch != c.epoch {
		return
	}
	c.drop(name)
	size := len(name) + len(value)
	if len(c.entries) >= maxEntries || c.bytes+size > maxBytes {
		c.sweep()
	}
	if len(c.entries) >= maxEntries || c.bytes+size > maxBytes {
		return
	}
	c.entries[name] = entry{value, asked}
	c.bytes += size
}

// forget drops everything, because something was changed.
func (c *cache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries, c.bytes = map[string]entry{}, 0
	c.epoch++
}

func (c *cache) drop(name string) {
	if e, ok := c.entries[name]; ok {
		c.bytes -= len(name) + len(e.value)
		delete(c.entries, name)
	}
}

func (c *cache) sweep() {
	now := c.now()
	for name, e := range c.entries {
		if age := now.Sub(e.asked); age < 0 || age >= c.ttl {
			c.drop(name)
		}
	}
}
