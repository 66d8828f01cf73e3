//go:build cgo

package token

import (
	"errors"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

// Login is how the PIN is handled.
type Login struct {
	// Before is called right before the PIN is given to the token; an error keeps it from that.
	Before func() error
	// AfterWrongPIN logs in although the token says that the last PIN was wrong.
	AfterWrongPIN bool
}

// login gives the PIN to the token once.
//
// Tokens lock after a few wrong PINs, some for ever, and something that restarts a program with a wrong PIN gets there in
// seconds. A token that remembers a wrong PIN is therefore left alone until somebody has logged in by hand.
func (t *Token) login(sh pkcs11.SessionHandle, pin []byte, l Login) error {
	f := t.info.flags
	switch {
	case f&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return link.Fail(link.StatusPIN, "token %q has no user PIN", t.info.Label)
	case f&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return link.Fail(link.StatusPIN, "the user PIN of token %q is locked", t.info.Label)
	case f&(pkcs11.CKF_USER_PIN_COUNT_LOW|pkcs11.CKF_USER_PIN_FINAL_TRY) != 0 && !l.AfterWrongPIN:
		return link.Fail(link.StatusPIN, "token %q was given a wrong PIN before: not trying again, so that it does not lock; "+
			"correct the PIN file and run cloister-pkcs11 check --after-wrong-pin", t.info.Label)
	}
	if l.Before != nil {
		if err := l.Before(); err != nil {
			return err
		}
	}
	// A Go string made of pin would stay in memory: this one is pin, and the caller overwrites it.
	err := t.module.ctx.Login(sh, pkcs11.CKU_USER, unsafe.String(unsafe.SliceData(pin), len(pin)))
	var code pkcs11.Error
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &code):
		return failure("logging in", err)
	}
	switch uint(code) {
	case pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_INVALID, pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_EXPIRED, pkcs11.CKR_PIN_LOCKED,
		pkcs11.CKR_USER_PIN_NOT_INITIALIZED:
		return link.Fail(link.StatusPIN, "token %q refuses the PIN: %s; it is not tried again", t.info.Label, name(code))
	}
	return failure("logging in", err)
}
