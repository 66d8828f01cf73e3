//go:build cgo

package token

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/cloister/cloister/broker/pkcs11/link"
)

// name is the name of an error without the binding's decoration.
func name(e pkcs11.Error) string {
	text := e.Error()
	if i := strings.Index(text, "CKR_"); i >= 0 {
		return text[i:]
	}
	return fmt.Sprintf("CKR 0x%X", uint(e))
}

// coded is a failure that still tells the module's code, for `is`.
type coded struct {
	*link.Failure
	code pkcs11.Error
}

// Unwrap is for errors.As and errors.Is.
func (c coded) Unwrap() []error { return []error{c.Failure, c.code} }

// failure makes a link.Failure of an error of the binding.
func failure(doing string, err error) error {
	var code pkcs11.Error
	if !errors.As(err, &code) {
		return link.Fail(link.StatusFailed, "%s: %v", doing, err)
	}
	return coded{&link.Failure{Status: status(uint(code)), Text: doing + ": " + name(code)}, code}
}

func status(code uint) link.Status {
	switch code {
	case pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT,
		pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED, pkcs11.CKR_SLOT_ID_INVALID,
		pkcs11.CKR_OPERATION_ACTIVE:
		return link.StatusLost
	case pkcs11.CKR_DEVICE_MEMORY:
		return link.StatusFull
	case pkcs11.CKR_TOKEN_WRITE_PROTECTED, pkcs11.CKR_SESSION_READ_ONLY:
		return link.StatusReadOnly
	case pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE:
		return link.StatusBadCipher
	}
	return link.StatusFailed
}

// is tells whether an error of the binding has one of some codes.
func is(err error, codes ...uint) bool {
	for _, c := range codes {
		if errors.Is(err, pkcs11.Error(c)) {
			return true
		}
	}
	return false
}
