package grpcdial

import (
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/broker/outage"
)

// maxText bounds what is repeated of the other side's words.
const maxText = 2 << 10

// CallError is a call that did not work. It is outage.ErrUnavailable (by errors.Is) when the service could not be asked, and
// codes.Aborted when it was asked and said no, as upstream's services do whatever the reason.
type CallError struct {
	Address string
	Code    codes.Code
	Text    string
}

// Error is part of error.
func (e *CallError) Error() string {
	switch e.Code {
	case codes.Aborted:
		return e.Text
	case codes.Unavailable:
		return fmt.Sprintf("%s cannot be reached: %s", e.Address, e.Text)
	case codes.DeadlineExceeded:
		return fmt.Sprintf("%s did not answer in time", e.Address)
	}
	return fmt.Sprintf("%s answered %s: %s", e.Address, e.Code, e.Text)
}

// Is is part of what errors.Is looks for.
func (e *CallError) Is(target error) bool {
	return target == outage.ErrUnavailable && (e.Code == codes.Unavailable || e.Code == codes.DeadlineExceeded)
}

// GRPCStatus keeps the code readable for status.Code.
func (e *CallError) GRPCStatus() *status.Status { return status.New(e.Code, e.Text) }

func (p *Pool) failure(err error) error {
	s := status.Convert(err)
	return &CallError{Address: p.cfg.Address, Code: s.Code(), Text: clean(s.Message())}
}

// clean makes foreign text fit for one line of a log or an answer.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + ".."
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}
