package collateral

import "time"

// Stats is a snapshot of the cache's counters, for metrics. Counters only grow; Entries, Bytes and Negatives are levels.
type Stats struct {
	Hits         uint64 `json:"hits"`          // served from memory
	Misses       uint64 `json:"misses"`        // had to look further
	Shared       uint64 `json:"shared"`        // waited for a fetch that another caller had started
	Deferred     uint64 `json:"deferred"`      // refused because the same had failed a moment ago
	Outages      uint64 `json:"outages"`       // served although a newer document was due and could not be had
	Fetches      uint64 `json:"fetches"`       // rounds through the sources
	Failures     uint64 `json:"failures"`      // rounds in which no source delivered
	Rejected     uint64 `json:"rejected"`      // answers that were not what was asked for, or expired
	DiskReads    uint64 `json:"disk_reads"`    // served from a file that another process or an earlier run wrote
	DiskErrors   uint64 `json:"disk_errors"`   // writes that failed: the document is in memory only
	DiskCorrupt  uint64 `json:"disk_corrupt"`  // files that were not whole and were removed
	Evictions    uint64 `json:"evictions"`     // documents dropped to stay within bounds
	Entries      int    `json:"entries"`       // documents held
	Bytes        int64  `json:"bytes"`         // memory they take
	NegativeKeys int    `json:"negative_keys"` // failures remembered
	// Sources are the sources in the order they are asked.
	Sources []SourceStats `json:"sources"`
}

// SourceStats is how one source fared.
type SourceStats struct {
	Name     string `json:"name"`
	Asked    uint64 `json:"asked"`
	Answered uint64 `json:"answered"`
	Failed   uint64 `json:"failed"`
	// WaitUntil is when the source is asked again after failures; zero when it is not waiting.
	WaitUntil time.Time `json:"wait_until,omitzero"`
	LastError string    `json:"last_error,omitempty"`
}

// Stats returns the counters as they are now.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Entries, s.Bytes, s.NegativeKeys = len(c.byKey), c.bytes, c.negatives.order.Len()
	now := c.now()
	for _, src := range c.sources {
		st := src.stats
		if src.until.After(now) {
			st.WaitUntil = src.until
		}
		s.Sources = append(s.Sources, st)
	}
	return s
}
