package fragment

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// The part of CBOR (RFC 8949) that COSE messages use. Heads are in their shortest form and lengths are definite, as deterministic
// encoding wants it, so that a message cannot be read in two ways.

const (
	majorUint  = 0
	majorNeg   = 1
	majorBytes = 2
	majorText  = 3
	majorArray = 4
	majorMap   = 5
	majorTag   = 6
	majorOther = 7

	maxNesting = 8
	maxItems   = 256 // of one array or map
)

var errShort = errors.New("the message ends early")

// reader reads CBOR items one after the other.
type reader struct{ data []byte }

func (r *reader) head() (major byte, arg uint64, err error) {
	if len(r.data) == 0 {
		return 0, 0, errShort
	}
	first := r.data[0]
	major, info := first>>5, first&31
	r.data = r.data[1:]
	if info < 24 {
		return major, uint64(info), nil
	}
	if info > 27 {
		return 0, 0, errors.New("a length is indefinite or reserved")
	}
	n := 1 << (info - 24)
	if len(r.data) < n {
		return 0, 0, errShort
	}
	for _, c := range r.data[:n] {
		arg = arg<<8 | uint64(c)
	}
	r.data = r.data[n:]
	if major != majorOther && (n == 1 && arg < 24 || n > 1 && arg>>(4*n) == 0) {
		return 0, 0, errors.New("a number is not in its shortest form")
	}
	return major, arg, nil
}

func (r *reader) expect(want byte, what string) (uint64, error) {
	major, arg, err := r.head()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	if major != want {
		return 0, fmt.Errorf("%s: it is of type %d, want %d", what, major, want)
	}
	return arg, nil
}

// take cuts n bytes off.
func (r *reader) take(n uint64) ([]byte, error) {
	if n > uint64(len(r.data)) {
		return nil, errShort
	}
	out := r.data[:n:n]
	r.data = r.data[n:]
	return out, nil
}

func (r *reader) bytes(what string) ([]byte, error) {
	n, err := r.expect(majorBytes, what)
	if err != nil {
		return nil, err
	}
	b, err := r.take(n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return b, nil
}

func (r *reader) text(what string) (string, error) {
	n, err := r.expect(majorText, what)
	if err != nil {
		return "", err
	}
	b, err := r.take(n)
	if err == nil && !utf8.Valid(b) {
		err = errors.New("the text is not UTF-8")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return string(b), nil
}

// integer reads a number of either sign.
func (r *reader) integer(what string) (int64, error) {
	major, arg, err := r.head()
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s: %w", what, err)
	case major != majorUint && major != majorNeg:
		return 0, fmt.Errorf("%s: it is no number", what)
	case arg > 1<<62:
		return 0, fmt.Errorf("%s: the number is too large", what)
	case major == majorNeg:
		return -1 - int64(arg), nil
	}
	return int64(arg), nil
}

// next is the type of the item that follows.
func (r *reader) next() byte {
	if len(r.data) == 0 {
		return 255
	}
	return r.data[0] >> 5
}

// skip passes over one item of any kind.
func (r *reader) skip(depth int) error {
	if depth > maxNesting {
		return fmt.Errorf("values are nested more than %d deep", maxNesting)
	}
	major, arg, err := r.head()
	if err != nil {
		return err
	}
	switch major {
	case majorBytes, majorText:
		_, err = r.take(arg)
		return err
	case majorMap, majorArray:
		if arg > maxItems { // before it is doubled
			return errors.New("too many items")
		}
		if major == majorMap {
			arg *= 2
		}
		for range arg {
			if err := r.skip(depth + 1); err != nil {
				return err
			}
		}
	case majorTag:
		return r.skip(depth + 1)
	}
	return nil
}

// label is a key of a header: a number or a text.
type label struct {
	number int64
	text   string
}

func (l label) String() string {
	if l.text != "" {
		return fmt.Sprintf("%q", l.text)
	}
	return fmt.Sprint(l.number)
}

// entries calls member for each entry of a map, with the reader at its value. It refuses keys that come twice.
func (r *reader) entries(what string, member func(l label) error) error {
	n, err := r.expect(majorMap, what)
	if err != nil {
		return err
	}
	if n > maxItems {
		return fmt.Errorf("%s: too many entries", what)
	}
	seen := map[label]bool{}
	for range n {
		var l label
		if r.next() == majorText {
			if l.text, err = r.text(what + ": a label"); err == nil && l.text == "" {
				err = fmt.Errorf("%s: a label is empty", what)
			}
		} else {
			l.number, err = r.integer(what + ": a label")
		}
		if err != nil {
			return err
		}
		if seen[l] {
			return fmt.Errorf("%s: %s comes twice", what, l)
		}
		seen[l] = true
		if err := member(l); err != nil {
			return fmt.Errorf("%s: %s: %w", what, l, err)
		}
	}
	return nil
}

func appendHead(b []byte, major byte, arg uint64) []byte {
	major <<= 5
	switch {
	case arg < 24:
		return append(b, major|byte(arg))
	case arg < 1<<8:
		return append(b, major|24, byte(arg))
	case arg < 1<<16:
		return append(b, major|25, byte(arg>>8), byte(arg))
	case arg < 1<<32:
		return append(b, major|26, byte(arg>>24), byte(arg>>16), byte(arg>>8), byte(arg))
	}
	b = append(b, major|27)
	for shift := 56; shift >= 0; shift -= 8 {
		b = append(b, byte(arg>>shift))
	}
	return b
}

func appendBytes(b, v []byte) []byte {
	return append(appendHead(b, majorBytes, uint64(len(v))), v...)
}

func appendText(b []byte, v string) []byte {
	return append(appendHead(b, majorText, uint64(len(v))), v...)
}

func appendInt(b []byte, v int64) []byte {
	if v < 0 {
		return appendHead(b, majorNeg, uint64(-1-v))
	}
	return appendHead(b, majorUint, uint64(v))
}
