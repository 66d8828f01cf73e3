//go:build cgo

// Package token works with one token of a PKCS#11 module. It is the only package with C in it, and linked into
// cloister-pkcs11 only: a module is a vendor's C library, and may take down the process it is loaded into.
//
// The token is found by its label or serial number, never by the index of its slot, which changes when another one is
// plugged in. The PIN is given to the token once per process. After an error that says the session ended, or that cannot be
// told from it, the process ends and is started again: a fresh module is the one state that every vendor has tested.
package token

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

// maxSlots bounds the slots of a module that are looked at.
const maxSlots = 256

// Options say which token is used.
type Options struct {
	Module string
	// Label and Serial select the token; one may be empty.
	Label, Serial string
	// Sessions is how many requests the token works on at once.
	Sessions int
}

// Info tells about a token.
type Info struct {
	Label, Serial, Manufacturer, Model string
	// Initialised tells that it has been given a label, PINReady that it has a user PIN.
	Initialised, PINReady bool
	flags                 uint
	slot                  uint
}

// Module is a loaded C library.
type Module struct{ ctx *pkcs11.Ctx }

// Load loads a library and initialises it.
func Load(path string) (*Module, error) {
	ctx := pkcs11.New(path)
	if ctx == nil {
		return nil, link.Fail(link.StatusFailed, "loading module %s: it is not there or not a PKCS#11 library of this machine", path)
	}
	if err := ctx.Initialize(); err != nil {
		ctx.Destroy()
		return nil, failure("initialising module "+path, err)
	}
	return &Module{ctx}, nil
}

// Close finalises the module and unloads it.
func (m *Module) Close() error {
	err := m.ctx.Finalize()
	m.ctx.Destroy()
	if err != nil {
		return failure("finalising the module", err)
	}
	return nil
}

// Tokens lists the tokens that are there.
func (m *Module) Tokens() ([]Info, error) {
	slots, err := m.ctx.GetSlotList(true)
	if err != nil {
		return nil, failure("listing slots", err)
	}
	if len(slots) > maxSlots {
		return nil, link.Fail(link.StatusFailed, "the module has %d slots with tokens, at most %d are looked at", len(slots), maxSlots)
	}
	var out []Info
	for _, slot := range slots {
		i, err := m.ctx.GetTokenInfo(slot)
		if errors.Is(err, pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT)) || errors.Is(err, pkcs11.Error(pkcs11.CKR_TOKEN_NOT_RECOGNIZED)) {
			continue
		}
		if err != nil {
			return nil, failure(fmt.Sprintf("reading about the token in slot %d", slot), err)
		}
		out = append(out, Info{Label: trim(i.Label), Serial: trim(i.SerialNumber), Manufacturer: trim(i.ManufacturerID), Model: trim(i.Model),
			Initialised: i.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0, PINReady: i.Flags&pkcs11.CKF_USER_PIN_INITIALIZED != 0,
			flags: i.Flags, slot: slot})
	}
	return out, nil
}

// find selects exactly one token.
func (m *Module) find(o Options) (Info, error) {
	all, err := m.Tokens()
	if err != nil {
		return Info{}, err
	}
	var found []Info
	for _, i := range all {
		if i.Initialised && (o.Label == "" || i.Label == o.Label) && (o.Serial == "" || i.Serial == o.Serial) {
			found = append(found, i)
		}
	}
	switch {
	case o.Label == "" && o.Serial == "":
		return Info{}, link.Fail(link.StatusAbsent, "neither a token label nor a serial number is given")
	case len(found) == 0:
		return Info{}, link.Fail(link.StatusAbsent, "no token has label %q and serial number %q (an empty one is any); %d tokens are there",
			o.Label, o.Serial, len(all))
	case len(found) > 1:
		return Info{}, link.Fail(link.StatusAbsent, "%d tokens have label %q, want one; give token_serial", len(found), o.Label)
	}
	return found[0], nil
}

// Token is a token with a logged-in user. It is safe for use by several goroutines.
type Token struct {
	module   *Module
	info     Info
	sessions chan pkcs11.SessionHandle
	objects  sync.RWMutex // modules have been seen that let a reader see half of what another thread writes
	gcm      bool
}

// Open finds the token, logs in and opens the sessions. It closes the module when it fails. The PIN is overwritten.
func Open(o Options, pin []byte, login Login) (*Token, error) {
	defer clear(pin)
	m, err := Load(o.Module)
	if err != nil {
		return nil, err
	}
	t, err := open(m, o, pin, login)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return t, nil
}

func open(m *Module, o Options, pin []byte, login Login) (*Token, error) {
	info, err := m.find(o)
	if err != nil {
		return nil, err
	}
	flags := uint(pkcs11.CKF_SERIAL_SESSION)
	if info.flags&pkcs11.CKF_WRITE_PROTECTED == 0 {
		flags |= pkcs11.CKF_RW_SESSION
	}
	t := &Token{module: m, info: info, sessions: make(chan pkcs11.SessionHandle, max(o.Sessions, 1))}
	for range cap(t.sessions) {
		sh, err := m.ctx.OpenSession(info.slot, flags)
		if err != nil {
			return nil, failure(fmt.Sprintf("opening session %d of %d", len(t.sessions)+1, cap(t.sessions)), err)
		}
		t.sessions <- sh
	}
	sh := <-t.sessions
	t.sessions <- sh
	if err := t.login(sh, pin, login); err != nil {
		return nil, err
	}
	mechanism, err := m.ctx.GetMechanismInfo(info.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, nil)})
	t.gcm = err == nil && mechanism.Flags&pkcs11.CKF_ENCRYPT != 0 && mechanism.Flags&pkcs11.CKF_DECRYPT != 0
	return t, nil
}

// Info tells about the token.
func (t *Token) Info() Info { return t.info }

// AESGCM tells whether the token encrypts with AES-GCM.
func (t *Token) AESGCM() bool { return t.gcm }

// Close logs out and finalises the module. Nothing else may be under way.
func (t *Token) Close() error {
	// Finalising would do both; modules have been seen that keep the login for the next process.
	err := errors.Join(t.module.ctx.CloseAllSessions(t.info.slot))
	return errors.Join(err, t.module.Close())
}

// with lends a session. An error after which the session is not usable any more becomes StatusLost.
func (t *Token) with(ctx context.Context, fn func(sh pkcs11.SessionHandle) error) error {
	select {
	case sh := <-t.sessions:
		defer func() { t.sessions <- sh }()
		err := fn(sh)
		if err == nil || !t.suspicious(err) {
			return err
		}
		if probe := t.probe(sh); probe != nil {
			return link.Fail(link.StatusLost, "%v; then %v", err, probe)
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// suspicious tells whether an error may mean that the session ended.
func (t *Token) suspicious(err error) bool {
	switch link.StatusOf(err) {
	case link.StatusFailed, link.StatusBadCipher, link.StatusBadKey, link.StatusNotFound:
		// Some modules find nothing instead of saying that nobody is logged in.
		return true
	}
	return false
}

// probe tells whether a session is there, with the user logged in.
func (t *Token) probe(sh pkcs11.SessionHandle) error {
	info, err := t.module.ctx.GetSessionInfo(sh)
	if err != nil {
		return failure("asking for the state of the session", err)
	}
	if info.State != pkcs11.CKS_RW_USER_FUNCTIONS && info.State != pkcs11.CKS_RO_USER_FUNCTIONS {
		return link.Fail(link.StatusLost, "the user is not logged in any more")
	}
	if _, err := t.module.ctx.GetTokenInfo(t.info.slot); err != nil {
		return failure("asking for the token", err)
	}
	return nil
}

// trim takes the padding off a text of fixed length.
func trim(s string) string {
	for len(s) > 0 && (s[len(s)-1] == ' ' || s[len(s)-1] == 0) {
		s = s[:len(s)-1]
	}
	return s
}
