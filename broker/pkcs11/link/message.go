package link

import (
	"errors"
	"fmt"
	"strings"
)

// Op is what the broker asks for.
type Op byte

// The operations, their fields, and the fields of their answers.
const (
	OpGet     Op = 1 + iota // label -> value
	OpPut                   // label, value -> nothing
	OpDelete                // label -> nothing
	OpEncrypt               // key label, hash, plaintext -> ciphertext
	OpDecrypt               // key label, hash, ciphertext -> plaintext
	OpWrap                  // key label, hash, plaintext, context -> wrapped
	OpUnwrap                // key label, hash, wrapped, context -> plaintext
	opEnd
)

// Fields is how many fields a request of an operation has, and how many its answer; ok is false for no operation.
func (o Op) Fields() (request, answer int, ok bool) {
	switch o {
	case OpGet:
		return 1, 1, true
	case OpPut:
		return 2, 0, true
	case OpDelete:
		return 1, 0, true
	case OpEncrypt, OpDecrypt:
		return 3, 1, true
	case OpWrap, OpUnwrap:
		return 4, 1, true
	}
	return 0, 0, false
}

// Repeatable tells whether an operation may be asked for again when nobody knows whether it was done.
func (o Op) Repeatable() bool { return o != OpDelete }

// String is for errors.
func (o Op) String() string {
	names := [opEnd]string{"", "get", "put", "delete", "encrypt", "decrypt", "wrap", "unwrap"}
	if o > 0 && o < opEnd {
		return names[o]
	}
	return fmt.Sprintf("operation %d", byte(o))
}

// The hashes of RSA-OAEP, as they are written in a request.
const (
	SHA256 = "sha256"
	SHA1   = "sha1"
)

// Status is how an operation ended.
type Status byte

// The statuses. All but StatusOK and StatusLogin come with one field, a text for the log.
const (
	StatusOK         Status = iota
	StatusLogin             // the PIN is given to the token now
	StatusNotFound          // no object has the label
	StatusDuplicate         // several objects have the label
	StatusBadRequest        // a size or a field that cannot be
	StatusBadCipher         // what was to be decrypted does not decrypt
	StatusBadKey            // no key with this label, or it is not fit
	StatusFull              // the token takes no more, or not of this size
	StatusReadOnly          // the token is write-protected
	StatusLost              // the session ended: the helper has to begin anew
	StatusAbsent            // no token with this label or serial number
	StatusPIN               // the token refused the PIN, or would have to be asked once too often
	StatusFailed            // anything else
	statusEnd
)

// maxText bounds a text of the other side.
const maxText = 400

// Failure is a Status other than StatusOK, as an error.
type Failure struct {
	Status Status
	Text   string
}

// Error is part of error.
func (f *Failure) Error() string { return f.Text }

// Fail makes a Failure.
func Fail(s Status, format string, args ...any) error {
	return &Failure{s, fmt.Sprintf(format, args...)}
}

// StatusOf is the status of an error; an error that is no Failure is StatusFailed.
func StatusOf(err error) Status {
	var f *Failure
	switch {
	case err == nil:
		return StatusOK
	case errors.As(err, &f):
		return f.Status
	}
	return StatusFailed
}

// Refusal makes the answer that tells about an error.
func Refusal(id uint64, err error) Frame {
	return Frame{ID: id, Code: byte(StatusOf(err)), Fields: [][]byte{[]byte(tame(err.Error()))}}
}

// FailureOf reads an answer that is not StatusOK. What the other side sends beyond the protocol is an error that wraps ErrFrame.
func FailureOf(f Frame) (*Failure, error) {
	s := Status(f.Code)
	if s == StatusOK || s == StatusLogin || s >= statusEnd || len(f.Fields) != 1 {
		return nil, fmt.Errorf("an answer has status %d and %d fields: %w", f.Code, len(f.Fields), ErrFrame)
	}
	return &Failure{s, tame(string(f.Fields[0]))}, nil
}

// tame makes a text of the other side fit for one line of a log.
func tame(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
