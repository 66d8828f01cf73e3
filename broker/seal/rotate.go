package seal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cloister/cloister/broker/store"
)

// maxSwaps is how often a change of the record that others change too is tried.
const maxSwaps = 4

// Rotate makes a new current key and returns its id. The old ones stay for reading until Retire. When another broker has
// done so at the same moment, its key is the new one. A crash leaves the old record or the new one; Rotate may be called again.
func (k *Keys) Rotate(ctx context.Context) (id string, err error) {
	rec, doc, err := k.read(ctx)
	if err != nil {
		return "", err
	}
	before := doc.Current
	if len(doc.Keys) >= maxKeys {
		return "", fmt.Errorf("there are %d storage keys already; hint: seal everything anew, then the old ones can go", len(doc.Keys))
	}
	entry, err := k.fresh(ctx, rec.Now)
	if err != nil {
		return "", err
	}
	doc.find(before).Replaced = rec.Now.UTC()
	doc.Keys, doc.Current = append(doc.Keys, entry), entry.ID
	failed := k.swap(ctx, rec.Version, doc)
	// Whatever became of the write, the record tells: an answer may be lost on its way.
	if err := k.look(ctx); err != nil {
		return "", errors.Join(failed, err)
	}
	if now := k.ID(); failed == nil || now == entry.ID || errors.Is(failed, store.ErrChanged) && now != before {
		return now, nil
	}
	return "", failed
}

func (k *Keys) swap(ctx context.Context, version int64, doc document) error {
	raw, err := doc.encode()
	if err != nil {
		return err
	}
	if err := k.src.Keep.Swap(ctx, version, raw); err != nil {
		return fmt.Errorf("writing storage keys: %w", err)
	}
	return nil
}

// Rewrap wraps all keys anew with the Wrapper of today: after the key of the service was rotated, or to change over to
// another service. Values stay as they are. It tells how many keys there are.
func (k *Keys) Rewrap(ctx context.Context) (int, error) {
	var failed error
	for range maxSwaps {
		rec, doc, err := k.read(ctx)
		if err != nil {
			return 0, err
		}
		for i, e := range doc.Keys {
			raw, err := k.unwrap(ctx, e)
			if err != nil {
				return 0, err
			}
			key, err := New(raw)
			if err == nil && key.ID() != e.ID {
				err = fmt.Errorf("what is wrapped as storage key %s is key %s", e.ID, key.ID())
			}
			if err == nil {
				doc.Keys[i].Wrapped, err = wrapKey(ctx, k.src.Wrap, k.src.Identity, raw)
			}
			clear(raw)
			if err != nil {
				return 0, err
			}
			doc.Keys[i].Wrapper = k.src.Wrap.Name()
		}
		if failed = k.swap(ctx, rec.Version, doc); !errors.Is(failed, store.ErrChanged) {
			return len(doc.Keys), errors.Join(failed, k.look(ctx))
		}
	}
	return 0, failed
}

// ErrEarly is returned by Retire when old keys may still be in use.
var ErrEarly = errors.New("old storage keys may still be in use")

// Retire removes the keys that were replaced, after reseal has sealed everything anew (ResealAll for each namespace, and
// resource.Store.Reseal), and returns their ids. It waits for nobody: keys replaced a short time ago stay, and when there
// are only such, the error wraps ErrEarly and tells when to come again. A crash leaves keys too many, never too few.
func (k *Keys) Retire(ctx context.Context, reseal func(context.Context) error) ([]string, error) {
	rec, doc, err := k.read(ctx)
	if err != nil {
		return nil, err
	}
	var gone []string
	var next time.Time
	for _, e := range doc.Keys {
		end := e.Replaced.Add(grace)
		switch {
		case e.ID == doc.Current:
		case !end.After(rec.Now):
			gone = append(gone, e.ID)
		case next.IsZero() || end.Before(next):
			next = end
		}
	}
	if len(gone) == 0 {
		if next.IsZero() {
			return nil, nil
		}
		return nil, fmt.Errorf("%w; hint: try again after %s", ErrEarly, next.UTC().Format(time.RFC3339))
	}
	if err := k.look(ctx); err != nil { // so that what is sealed now is sealed with a key that stays
		return nil, err
	}
	if slices.Contains(gone, k.ID()) {
		return nil, fmt.Errorf("storage key %s is to go and is in use", k.ID())
	}
	if err := reseal(ctx); err != nil {
		return nil, fmt.Errorf("sealing everything anew: %w", err)
	}
	for range maxSwaps {
		if rec, doc, err = k.read(ctx); err != nil {
			return nil, err
		}
		if slices.Contains(gone, doc.Current) {
			return nil, fmt.Errorf("storage key %s is to go and is the current one", doc.Current)
		}
		doc.Keys = slices.DeleteFunc(doc.Keys, func(e wrapped) bool { return slices.Contains(gone, e.ID) })
		if err = k.swap(ctx, rec.Version, doc); !errors.Is(err, store.ErrChanged) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return gone, k.look(ctx)
}
