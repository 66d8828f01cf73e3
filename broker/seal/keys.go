package seal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/cloister/cloister/broker/store"
)

const (
	// refreshAfter is how old what a broker knows of the record may be before it looks again, staleAfter when it no longer
	// seals: the key may have been replaced and be about to go.
	refreshAfter = time.Minute
	staleAfter   = 5 * time.Minute
	// grace is how long after its replacement a key stays at least. A broker may seal with it for staleAfter, and a
	// write takes less than the rest.
	grace = 10 * time.Minute
	// refreshTimeout bounds one look at the record with the unwrapping of new keys.
	refreshTimeout = 30 * time.Second
)

// Source says where wrapped storage keys are and who unwraps them.
type Source struct {
	// Identity is the name of the brokers that share the keys. Keys of others are refused.
	Identity string
	Keep     KeyStore
	// Wrap is what keys are wrapped with; Previous can still unwrap those from before.
	Wrap     Wrapper
	Previous []Wrapper
	// OldFiles are plain key files whose values are still to be read, when a broker changes over to wrapped keys.
	OldFiles []string
	// NoCreate refuses to make the first key: the store holds values that are sealed already.
	NoCreate bool
	Now      func() time.Time
}

// Keys seals and opens with storage keys that are kept wrapped. It is used like a Ring, by many goroutines.
//
// Brokers that share a record agree by themselves: before it seals, a broker looks whether the record has changed, at
// most once in refreshAfter; a value sealed with a key it does not know makes it look at once. A new key is in the record
// before anything is sealed with it. A key leaves the record (Retire) only when no broker can seal with it any more and
// everything has been sealed anew after that.
type Keys struct {
	src   Source
	old   []*Key
	group singleflight.Group

	mu sync.Mutex
	at view
}

// view is the record as it was at a time.
type view struct {
	ring    *Ring
	doc     document
	version int64
	seen    time.Time // by the clock of the Source, before the record was read
}

// Open reads and unwraps the keys, making the first one when there is none. It asks the Wrapper, so ctx bounds it.
func Open(ctx context.Context, s Source) (*Keys, error) {
	if err := CheckIdentity(s.Identity); err != nil {
		return nil, err
	}
	k := &Keys{src: s}
	for _, path := range s.OldFiles {
		old, err := load(path)
		if err != nil {
			return nil, err
		}
		k.old = append(k.old, old)
	}
	err := k.look(ctx)
	if errors.Is(err, store.ErrNotFound) {
		if s.NoCreate {
			return nil, fmt.Errorf("reading storage keys: %w; hint: put them back from a backup, what is sealed cannot be read without them", err)
		}
		if err = k.first(ctx); err == nil {
			err = k.look(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// first makes the first key, unless another broker is faster.
func (k *Keys) first(ctx context.Context) error {
	entry, err := k.fresh(ctx, k.src.Now())
	if err != nil {
		return err
	}
	doc := document{Format: format, Identity: k.src.Identity, Current: entry.ID, Keys: []wrapped{entry}}
	raw, err := doc.encode()
	if err != nil {
		return err
	}
	if err := k.src.Keep.Create(ctx, raw); err != nil && !errors.Is(err, store.ErrExists) {
		return fmt.Errorf("writing storage keys: %w", err)
	}
	return nil
}

// fresh makes a wrapped key.
func (k *Keys) fresh(ctx context.Context, now time.Time) (wrapped, error) {
	raw, err := newRaw()
	if err != nil {
		return wrapped{}, err
	}
	defer clear(raw)
	key, err := New(raw)
	if err != nil {
		return wrapped{}, err
	}
	blob, err := wrapKey(ctx, k.src.Wrap, k.src.Identity, raw)
	return wrapped{ID: key.ID(), Wrapper: k.src.Wrap.Name(), Wrapped: blob, Made: now.UTC()}, err
}

func (k *Keys) view() view {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.at
}

// read returns the record with its contents.
func (k *Keys) read(ctx context.Context) (Record, document, error) {
	rec, err := k.src.Keep.Load(ctx)
	if err != nil {
		return rec, document{}, fmt.Errorf("reading storage keys: %w", err)
	}
	doc, err := parseDocument(rec.Value)
	if err == nil && doc.Identity != k.src.Identity {
		err = fmt.Errorf("the storage keys belong to brokers with the identity %q, this one has %q", doc.Identity, k.src.Identity)
	}
	return rec, doc, err
}

// look takes over what the record says now. Keys that are known are not unwrapped again.
func (k *Keys) look(ctx context.Context) error {
	began := k.src.Now()
	was := k.view() // before reading: what is read is then the same or newer, or the record went back
	rec, doc, err := k.read(ctx)
	if err != nil {
		return err
	}
	ring := was.ring
	if ring == nil || rec.Version != was.version {
		if e := was.doc.find(doc.Current); e != nil && doc.Current != was.doc.Current && !e.Replaced.IsZero() {
			return fmt.Errorf("the record of storage keys went back to key %s, which was replaced; hint: was an old copy put in its place?",
				doc.Current)
		}
		if ring, err = k.build(ctx, doc, was.ring); err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	// The version says nothing about the order, so an older view that was slow must not replace a newer one.
	if !began.Before(k.at.seen) {
		k.at = view{ring, doc, rec.Version, began}
	}
	return nil
}

func (k *Keys) build(ctx context.Context, doc document, known *Ring) (*Ring, error) {
	var current *Key
	others := append([]*Key(nil), k.old...)
	for _, e := range doc.Keys {
		key := known.key(e.ID)
		if key == nil {
			raw, err := k.unwrap(ctx, e)
			if err != nil {
				return nil, err
			}
			key, err = New(raw)
			clear(raw)
			if err != nil {
				return nil, err
			}
			if key.ID() != e.ID {
				return nil, fmt.Errorf("what is wrapped as storage key %s is key %s", e.ID, key.ID())
			}
		}
		if e.ID == doc.Current {
			current = key
		} else {
			others = append(others, key)
		}
	}
	return NewRing(current, others...)
}

func (k *Keys) unwrap(ctx context.Context, e wrapped) ([]byte, error) {
	for _, w := range append([]Wrapper{k.src.Wrap}, k.src.Previous...) {
		if w.Name() == e.Wrapper {
			return unwrapKey(ctx, w, k.src.Identity, e.Wrapped)
		}
	}
	return nil, fmt.Errorf("storage key %s is wrapped with %.200q, which is not configured; hint: list it as a previous one", e.ID, e.Wrapper)
}

// shared looks at the record for all who want to at the same moment. Seal and Open have no context: the time is bounded here.
func (k *Keys) shared() error {
	_, err, _ := k.group.Do("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), refreshTimeout)
		defer cancel()
		return nil, k.look(ctx)
	})
	return err
}

// sealing is the Ring to seal with, of a view that is not too old.
func (k *Keys) sealing() (*Ring, error) {
	v := k.view()
	if age := k.src.Now().Sub(v.seen); age >= 0 && age < refreshAfter {
		return v.ring, nil
	}
	err := k.shared()
	v = k.view()
	if age := k.src.Now().Sub(v.seen); err != nil && age >= staleAfter {
		return nil, fmt.Errorf("the storage key may have been replaced, and since %s that cannot be told: %w", age.Round(time.Second), err)
	}
	return v.ring, nil
}

// ID names the current key.
func (k *Keys) ID() string { return k.view().ring.ID() }

// IDs names all keys, the current one first.
func (k *Keys) IDs() []string { return k.view().ring.IDs() }

// Seal encrypts plaintext with the current key and binds it to place.
func (k *Keys) Seal(place string, plaintext []byte) ([]byte, error) {
	ring, err := k.sealing()
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return ring.Seal(place, plaintext)
}

// Open decrypts a value that was sealed for place with any of the keys.
func (k *Keys) Open(place string, sealed []byte) ([]byte, error) {
	ring, err := k.opening(sealed)
	if err != nil {
		return nil, err
	}
	return ring.Open(place, sealed)
}

// Reseal returns a value sealed with the current key, and whether it was sealed with another one before.
func (k *Keys) Reseal(place string, sealed []byte) (out []byte, changed bool, err error) {
	if _, err := k.opening(sealed); err != nil {
		return nil, false, err
	}
	ring, err := k.sealing()
	if err != nil {
		return nil, false, err
	}
	return ring.Reseal(place, sealed)
}

// opening is a Ring that knows the key of a value, if there is one.
func (k *Keys) opening(sealed []byte) (*Ring, error) {
	id, err := keyID(sealed)
	if err != nil {
		return nil, err
	}
	// A look that was under way may have begun before the key was there; the second one did not.
	for range 2 {
		if ring := k.view().ring; ring.byID[id] != nil {
			return ring, nil
		}
		if err := k.shared(); err != nil {
			return nil, fmt.Errorf("looking for the storage key of a value: %w", err)
		}
	}
	return k.view().ring, nil
}
