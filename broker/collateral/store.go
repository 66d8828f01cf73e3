package collateral

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// lookup returns what is held under a key and marks its use. The caller holds the mutex.
func (c *Cache) lookup(key Key) *Item {
	e, ok := c.byKey[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*Item)
}

// insert puts an item into memory and returns the keys that had to go. The caller holds the mutex.
func (c *Cache) insert(it *Item) (evicted []Key) {
	if e, ok := c.byKey[it.Key]; ok {
		c.bytes -= e.Value.(*Item).size()
		c.order.Remove(e)
	}
	c.byKey[it.Key] = c.order.PushFront(it)
	c.bytes += it.size()
	for len(c.byKey) > c.o.MaxEntries || c.bytes > c.o.MaxBytes {
		last := c.order.Remove(c.order.Back()).(*Item)
		delete(c.byKey, last.Key)
		c.bytes -= last.size()
		c.stats.Evictions++
		evicted = append(evicted, last.Key)
	}
	return evicted
}

// store keeps an item on disk and in memory. A disk that fails costs persistence only.
func (c *Cache) store(it *Item) (diskErr error) {
	if c.disk != nil {
		if diskErr = c.disk.write(it); diskErr != nil {
			c.count(func(s *Stats) { s.DiskErrors++ })
			c.o.Log.Warn("collateral could not be written to disk and is kept in memory only", "collateral", it.Key.String(), "error", diskErr)
		}
	}
	c.mu.Lock()
	evicted := c.insert(it)
	c.mu.Unlock()
	for _, key := range evicted {
		c.disk.remove(key)
	}
	return diskErr
}

// readDisk takes over a file that another process wrote, nil when it is of no use.
func (c *Cache) readDisk(key Key) *Item {
	it, err := c.disk.read(key)
	if err != nil {
		c.disk.remove(key)
		c.count(func(s *Stats) { s.DiskCorrupt++ })
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.insert(it)
	c.stats.DiskReads++
	return it
}

// Put stores a document that was carried here, for example in a bundle, after the checks that an answer of a source gets. It refuses
// one that has ended, and keeps the one held when that is newer. It reports whether the document was taken.
func (c *Cache) Put(it Item) (taken bool, err error) {
	if err := it.Key.Validate(); err != nil {
		return false, err
	}
	now := c.now()
	if it.Issued, it.Until, err = Check(it.Key, it.Data, it.Chain); err != nil {
		return false, fmt.Errorf("collateral %s: %w", it.Key, err)
	}
	if it.expired(now) && (!it.Key.Kind.judged() || now.Sub(it.Until) > c.o.MaxStale) {
		return false, fmt.Errorf("collateral %s: it ended %s", it.Key, it.Until.UTC().Format(time.RFC3339))
	}
	if it.Fetched.IsZero() || it.Fetched.After(now) {
		it.Fetched = now
	}
	it.Refresh, it.Outage = refresh(&it, 0), nil
	c.mu.Lock()
	held := c.lookup(it.Key)
	if held != nil && (held.Issued.After(it.Issued) || held.Issued.Equal(it.Issued) && !held.Fetched.Before(it.Fetched)) {
		c.mu.Unlock()
		return false, nil
	}
	c.negatives.remove(it.Key)
	c.mu.Unlock()
	if err := c.store(&it); err != nil {
		return false, fmt.Errorf("collateral %s could not be written: %w", it.Key, err)
	}
	return true, nil
}

// List returns what is held, by kind and name.
func (c *Cache) List() []Item {
	c.mu.Lock()
	out := make([]Item, 0, len(c.byKey))
	for _, e := range c.byKey {
		out = append(out, *e.Value.(*Item))
	}
	c.mu.Unlock()
	slices.SortFunc(out, func(a, b Item) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return out
}
