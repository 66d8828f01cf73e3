package refstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// merge makes the record that a registration leads to. old is what holds of the present one, nil for nothing, and stays as it
// is. What is expired ends here.
func merge(old *Record, in incoming) (*Record, error) {
	out := &Record{
		Version: MessageVersion, Name: in.name, Value: in.value.raw, Registered: in.approval.Registered, By: in.approval.By,
		Source: in.approval.Source, Signer: in.approval.Signer, Expiration: in.approval.Expiration,
	}
	had, order, err := index(old)
	if err != nil {
		return nil, err
	}
	if err := in.allowed(old, had); err != nil {
		return nil, fmt.Errorf("reference value %q: %w", in.name, err)
	}
	if old != nil && (old.List() != in.value.list || !in.value.list && had[in.value.items[0].key] == nil) {
		had, order = map[string]*Element{}, nil // another value altogether
	}
	if in.value.list && len(in.value.items) == 0 {
		return out, nil
	}
	named := make(map[string]bool, len(in.value.items))
	for _, it := range in.value.items {
		named[it.key] = true
	}
	renew := in.renews(had)
	approved := make(map[string]Element, len(in.value.items))
	for _, it := range in.value.items {
		e := Element{Value: it.raw}
		if h := had[it.key]; h != nil {
			e = *h
		}
		approved[it.key] = in.approve(e, renew)
	}
	switch {
	case !in.add && in.approval.Group == "": // the message says all
		for _, it := range in.value.items {
			out.Elements = append(out.Elements, approved[it.key])
		}
	default: // what was there stays in its order
		for _, key := range order {
			e := *had[key]
			if named[key] {
				e = approved[key]
			} else if i := e.of(in.approval.Group); i >= 0 && !in.add {
				e.Approvals = slices.Delete(slices.Clone(e.Approvals), i, i+1)
			}
			if len(e.Approvals) > 0 {
				out.Elements = append(out.Elements, e)
			}
		}
		for _, it := range in.value.items {
			if had[it.key] == nil {
				out.Elements = append(out.Elements, approved[it.key])
			}
		}
	}
	if err := out.seal(); err != nil {
		return nil, err
	}
	return out, out.check()
}

// allowed refuses what would take from others what they registered, silently.
func (in incoming) allowed(old *Record, had map[string]*Element) error {
	if old == nil || in.value.list && old.List() || !in.value.list && !old.List() && had[in.value.items[0].key] != nil {
		return nil
	}
	const most = 128
	if in.add {
		return fmt.Errorf("it is %.*s, to which nothing can be added but to a list", most, old.Value)
	}
	if in.approval.Group == "" {
		return nil
	}
	for _, e := range old.Elements {
		for _, a := range e.Approvals {
			if a.Group != in.approval.Group {
				return fmt.Errorf("it is %.*s for group %q, group %q wants %.*s: a value that is no list is one for all", most, old.Value,
					a.Group, in.approval.Group, most, in.value.raw)
			}
		}
	}
	return nil
}

// renews tells whether values that are there get a new expiry.
func (in incoming) renews(had map[string]*Element) bool {
	if in.renew != nil {
		return *in.renew
	}
	if in.add {
		return true
	}
	for _, it := range in.value.items {
		e := had[it.key]
		if e == nil || in.approval.Group != "" && e.of(in.approval.Group) < 0 {
			return false // it brings something new
		}
	}
	return true
}

// approve adds the registration's approval to an element.
func (in incoming) approve(e Element, renew bool) Element {
	i := e.of(in.approval.Group)
	switch {
	case i >= 0 && !renew:
		return e
	case i < 0 && !renew && in.approval.Group == "" && len(e.Approvals) > 0:
		return e // it is there by its groups, and stays theirs
	}
	e.Approvals = slices.Clone(e.Approvals)
	if i >= 0 {
		e.Approvals[i] = in.approval
	} else {
		e.Approvals = append(e.Approvals, in.approval)
	}
	return e
}

// index returns the elements of a record by their key, and the keys in order.
func index(r *Record) (map[string]*Element, []string, error) {
	out := map[string]*Element{}
	if r == nil {
		return out, nil, nil
	}
	var order []string
	for i := range r.Elements {
		it, err := newItem(r.Elements[i].Value)
		if err != nil {
			return nil, nil, fmt.Errorf("reading reference value %q: %w", r.Name, err)
		}
		if out[it.key] == nil {
			order = append(order, it.key)
			out[it.key] = &r.Elements[i]
		}
	}
	return out, order, nil
}

// check enforces the bounds of a whole record.
func (r *Record) check() error {
	var err error
	if n := len(r.Elements); n > maxElements {
		err = fmt.Errorf("it would have %d elements, at most %d are kept", n, maxElements)
	}
	if n := len(r.Value); n > maxValue {
		err = errors.Join(err, fmt.Errorf("it would have %d bytes, at most %d are kept", n, maxValue))
	}
	for _, e := range r.Elements {
		if n := len(e.Approvals); n > maxGroups {
			err = errors.Join(err, fmt.Errorf("%.128s would belong to %d groups, at most %d are kept", e.Value, n, maxGroups))
		}
	}
	if err != nil {
		return fmt.Errorf("reference value %q: %w", r.Name, err)
	}
	return nil
}

func sameJSON(a, b json.RawMessage) bool {
	x, errA := newItem(a)
	y, errB := newItem(b)
	return errA == nil && errB == nil && x.key == y.key || bytes.Equal(a, b)
}
