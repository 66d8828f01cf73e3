//go:build cgo

package token

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

// A secret is a private token object: a secret key of type generic, whose label is the path of the resource
// (kbs-protocol.md section 6.2). It has to be readable, so it is extractable and not sensitive.
//
// An object cannot be replaced in one step. Put writes the new one first and then removes the old ones; the CKA_ID of ours
// counts, so that whoever comes in between, or after a crash there, takes the newest. Objects that somebody else made have no
// such id: one of them is taken, several with one label are refused, because nobody knows which is meant.
const (
	idMagic = "clstr/1\x00"
	idSize  = len(idMagic) + 8 + 8 // magic, generation, random bytes: two writers at once make two ids

	maxFound   = 64
	maxLookups = 8
)

type object struct {
	handle pkcs11.ObjectHandle
	id     []byte
}

func (o object) ours() bool { return len(o.id) == idSize && bytes.HasPrefix(o.id, []byte(idMagic)) }

func secretTemplate(label string) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), // what can be planted without the PIN does not count
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	}
}

// find returns the objects of a template that have exactly this label. When one goes while it looks, it looks again: the one
// that took its place may not have been seen.
func (t *Token) find(sh pkcs11.SessionHandle, template []*pkcs11.Attribute, label string) (out []object, err error) {
	for range maxLookups {
		var whole bool
		if out, whole, err = t.look(sh, template, label); whole || err != nil && !passing(err) {
			return out, err
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, changing(label)
}

// passing tells whether an error may be gone at the next attempt: SoftHSM has a general error for whoever reads or writes an
// object at the moment another process writes it.
func passing(err error) bool { return is(err, pkcs11.CKR_GENERAL_ERROR) }

func changing(label string) error {
	return link.Fail(link.StatusFailed, "the object with label %q changes all the time", label)
}

// look is one attempt of find; whole is false when an object went.
func (t *Token) look(sh pkcs11.SessionHandle, template []*pkcs11.Attribute, label string) (out []object, whole bool, err error) {
	ctx := t.module.ctx
	if err := ctx.FindObjectsInit(sh, template); err != nil {
		return nil, false, failure("looking for an object", err)
	}
	var handles []pkcs11.ObjectHandle
	for len(handles) <= maxFound {
		some, _, err := ctx.FindObjects(sh, maxFound+1-len(handles))
		if err != nil {
			_ = ctx.FindObjectsFinal(sh)
			return nil, false, failure("looking for an object", err)
		}
		if len(some) == 0 {
			break
		}
		handles = append(handles, some...)
	}
	if err := ctx.FindObjectsFinal(sh); err != nil {
		return nil, false, failure("looking for an object", err)
	}
	if len(handles) > maxFound {
		return nil, false, link.Fail(link.StatusDuplicate, "more than %d objects have label %q", maxFound, label)
	}
	whole = true
	for _, h := range handles {
		got, err := ctx.GetAttributeValue(sh, h, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil),
			pkcs11.NewAttribute(pkcs11.CKA_ID, nil)})
		if is(err, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
			whole = false
			continue
		}
		if err != nil {
			return nil, false, failure("reading about an object", err)
		}
		if len(got) == 2 && string(got[0].Value) == label { // some tokens compare more loosely
			out = append(out, object{h, got[1].Value})
		}
	}
	return out, whole, nil
}

// pick returns the object that counts, or -1 when there is none.
func pick(objects []object, label string) (int, error) {
	best, foreign := -1, 0
	for i, o := range objects {
		if !o.ours() {
			foreign++
		}
		if best < 0 || o.ours() && (!objects[best].ours() || bytes.Compare(o.id, objects[best].id) > 0) {
			best = i
		}
	}
	if foreign > 1 || foreign == 1 && len(objects) > 1 {
		return -1, link.Fail(link.StatusDuplicate, "%d objects have label %q, %d of them made by something else: remove all but one",
			len(objects), label, foreign)
	}
	return best, nil
}

// Get is part of serve.Token.
func (t *Token) Get(ctx context.Context, label string) (value []byte, err error) {
	t.objects.RLock()
	defer t.objects.RUnlock()
	err = t.with(ctx, func(sh pkcs11.SessionHandle) error {
		for try := 1; try <= maxLookups; try++ { // an object may be replaced between finding and reading it
			found, err := t.find(sh, secretTemplate(label), label)
			if err != nil {
				return err
			}
			i, err := pick(found, label)
			if err != nil {
				return err
			}
			if i < 0 {
				return link.Fail(link.StatusNotFound, "no object has label %q", label)
			}
			got, err := t.module.ctx.GetAttributeValue(sh, found[i].handle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)})
			if is(err, pkcs11.CKR_OBJECT_HANDLE_INVALID) || passing(err) && try < maxLookups {
				continue
			}
			if is(err, pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
				return link.Fail(link.StatusBadKey, "the object with label %q is sensitive: it cannot be read", label)
			}
			if err != nil {
				return failure("reading the value of an object", err)
			}
			if n := len(got[0].Value); n > link.MaxValue {
				clear(got[0].Value)
				return link.Fail(link.StatusFailed, "the object with label %q has %d bytes, at most %d are taken", label, n, link.MaxValue)
			}
			value = got[0].Value
			return nil
		}
		return changing(label)
	})
	return value, err
}

// Put is part of serve.Token.
func (t *Token) Put(ctx context.Context, label string, value []byte) error {
	t.objects.Lock()
	defer t.objects.Unlock()
	return t.with(ctx, func(sh pkcs11.SessionHandle) error {
		old, err := t.find(sh, secretTemplate(label), label)
		if err != nil {
			return err
		}
		id, err := next(old, label)
		if err != nil {
			return err
		}
		// An object that a failed attempt left has the same id and value.
		for range maxLookups {
			_, err = t.module.ctx.CreateObject(sh, append(secretTemplate(label),
				pkcs11.NewAttribute(pkcs11.CKA_ID, id),
				pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
				pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
				pkcs11.NewAttribute(pkcs11.CKA_VALUE, value)))
			if !passing(err) {
				break
			}
		}
		if is(err, pkcs11.CKR_KEY_SIZE_RANGE, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_DATA_LEN_RANGE) {
			return link.Fail(link.StatusFull, "the token takes no secret of %d bytes", len(value))
		}
		if err != nil {
			return failure("making an object", err)
		}
		return t.destroy(sh, old, label)
	})
}

// Delete is part of serve.Token.
func (t *Token) Delete(ctx context.Context, label string) error {
	t.objects.Lock()
	defer t.objects.Unlock()
	return t.with(ctx, func(sh pkcs11.SessionHandle) error {
		old, err := t.find(sh, secretTemplate(label), label)
		if err != nil {
			return err
		}
		if len(old) == 0 {
			return link.Fail(link.StatusNotFound, "no object has label %q", label)
		}
		if _, err := next(old, label); err != nil {
			return err
		}
		return t.destroy(sh, old, label)
	})
}

// next makes the id that follows those of old. It refuses several objects that are not ours: which one counted is unknown.
func next(old []object, label string) ([]byte, error) {
	var generation uint64
	foreign := 0
	for _, o := range old {
		if o.ours() {
			generation = max(generation, binary.BigEndian.Uint64(o.id[len(idMagic):]))
		} else {
			foreign++
		}
	}
	if foreign > 1 {
		return nil, link.Fail(link.StatusDuplicate, "%d objects that something else made have label %q: remove all but one", foreign, label)
	}
	if generation+1 == 0 {
		return nil, link.Fail(link.StatusFailed, "the object with label %q has the last generation there is", label)
	}
	id := binary.BigEndian.AppendUint64([]byte(idMagic), generation+1)
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return nil, fmt.Errorf("making an id: %w", err)
	}
	return append(id, random...), nil
}

// destroy removes objects, the newest last: a crash in between must not bring back an older value.
func (t *Token) destroy(sh pkcs11.SessionHandle, objects []object, label string) error {
	slices.SortFunc(objects, func(a, b object) int {
		if a.ours() != b.ours() {
			return map[bool]int{true: 1, false: -1}[a.ours()]
		}
		return bytes.Compare(a.id, b.id)
	})
	for _, o := range objects {
		err := t.module.ctx.DestroyObject(sh, o.handle)
		if err == nil || is(err, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
			continue
		}
		err = failure("removing an object", err)
		if link.StatusOf(err) != link.StatusFailed {
			return err
		}
		// Another process may have removed it at the same moment, for which modules have several errors.
		left, ferr := t.find(sh, secretTemplate(label), label)
		if ferr != nil {
			return ferr
		}
		if slices.ContainsFunc(left, func(l object) bool { return l.handle == o.handle }) {
			return err
		}
	}
	return nil
}
