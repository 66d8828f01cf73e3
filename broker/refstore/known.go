package refstore

import (
	"bytes"
	"sync"
	"time"
)

// known remembers what the latest records that were looked up say: every handshake asks for the same ones, and reading JSON costs more
// than fetching it. What is fetched stays the truth: other bytes are read anew.
type known struct {
	mu   sync.Mutex
	seen map[string]reading
}

// reading is what a record says from one time up to, not including, another; a zero until is for ever.
type reading struct {
	raw         []byte
	from, until time.Time
	live        *Record // nil when nothing of it holds
}

// What is remembered: this many records, none of more bytes than this.
const (
	maxKnown      = 512
	maxKnownBytes = 16 << 10
)

// live returns what is unexpired of a stored record, nil when that is nothing. The elements and the value are shared.
func (k *known) live(name string, raw []byte, now time.Time) (*Record, error) {
	k.mu.Lock()
	r, ok := k.seen[name]
	k.mu.Unlock()
	if !ok || !bytes.Equal(r.raw, raw) || now.Before(r.from) || !r.until.IsZero() && !now.Before(r.until) {
		var err error
		if r, err = read(name, raw, now); err != nil {
			return nil, err
		}
		k.keep(name, r)
	}
	if r.live == nil {
		return nil, nil
	}
	out := *r.live
	return &out, nil
}

func (k *known) keep(name string, r reading) {
	if len(r.raw) > maxKnownBytes {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.seen == nil {
		k.seen = map[string]reading{}
	}
	if _, ok := k.seen[name]; !ok && len(k.seen) >= maxKnown {
		for other := range k.seen { // any: the order of maps is random
			delete(k.seen, other)
			break
		}
	}
	k.seen[name] = r
}

// read decodes a record and takes what holds now, which does until the first of its approvals ends.
func read(name string, raw []byte, now time.Time) (reading, error) {
	r, err := decode(name, raw)
	if err != nil || r == nil {
		return reading{raw: raw, from: now}, err
	}
	live, err := r.at(now)
	if err != nil || live == nil {
		return reading{raw: raw, from: now}, err
	}
	until := live.Expiration
	for _, e := range live.Elements {
		for _, a := range e.Approvals {
			if a.Expiration.Before(until) {
				until = a.Expiration
			}
		}
	}
	return reading{raw, now, until, live}, nil
}
