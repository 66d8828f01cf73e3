package console

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
)

// plan is what a form asks for.
type plan struct {
	// call is what the administrator must be allowed.
	call adminauth.Call
	// event, subject and policy are of the audit entries.
	event, subject, policy string
	// do makes the change; nil when there is nothing to change and only show is wanted.
	do func(ctx context.Context, admin string) error
	// done is said on the page next, which comes after the change.
	done, next string
	// show answers instead of going to next.
	show func(v *visit) error
	// failed shows the form again with what was wrong; nil shows an error page.
	failed func(v *visit, err error) error
}

// write makes a handler of a form. The form is checked to be the session's before prepare reads it, and what prepare plans is done
// only when the administrator may, and is recorded.
func (c *Console) write(prepare func(v *visit) (*plan, error)) http.HandlerFunc {
	return c.visited(func(v *visit) error {
		if err := parseForm(v.r); err != nil {
			return err
		}
		if !v.s.sameForm(v.r.PostFormValue("csrf")) {
			return status{http.StatusForbidden, "This form is not of your session, so nothing was done. Load the page again."}
		}
		p, err := prepare(v)
		if err != nil {
			return err
		}
		if err := v.need(p.call); err != nil {
			return err
		}
		if p.do != nil {
			if err := v.change(p); err != nil {
				if p.failed != nil && !errors.Is(err, errUnrecorded) {
					return p.failed(v, err)
				}
				return err
			}
		}
		if p.show != nil {
			return p.show(v)
		}
		v.s.say(p.done)
		http.Redirect(v.w, v.r, p.next, http.StatusSeeOther)
		return nil
	})
}

// parseForm reads a form into memory.
func parseForm(r *http.Request) error {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return status{http.StatusUnsupportedMediaType, "The request is no form."}
	}
	switch kind {
	case "multipart/form-data":
		err = r.ParseMultipartForm(2 * maxForm) // more than a body may have: nothing goes to a file
	case "application/x-www-form-urlencoded":
		err = r.ParseForm()
	default:
		return status{http.StatusUnsupportedMediaType, "The request is no form."}
	}
	var large *http.MaxBytesError
	if err != nil && !errors.As(err, &large) {
		return status{http.StatusBadRequest, "The form cannot be read: " + clip(err.Error(), 200)}
	}
	return err
}

var errUnrecorded = errors.New("the audit log cannot be written, so nothing is changed")

// change makes a change between two entries of the audit log.
func (v *visit) change(p *plan) error {
	entry := audit.Entry{Event: p.event, Subject: clip(p.subject, 512), Policy: p.policy}
	tried := entry
	tried.Decision, tried.Reason = audit.Allow, "tried in the console by "+v.admin
	if err := v.c.Note(v.r, tried); err != nil {
		v.c.Log.ErrorContext(v.r.Context(), "writing the audit log", "event", p.event, "error", err)
		return errUnrecorded
	}
	// A browser that hangs up must not end a change half way, nor its record.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(v.r.Context()), handleTimeout)
	defer cancel()
	err := p.do(ctx, v.admin)
	if err != nil {
		entry.Decision, entry.Reason = audit.Error, err.Error()
	} else {
		entry.Decision, entry.Reason = audit.Allow, "done in the console by "+v.admin
	}
	v.c.noteAnyway(v.r, entry)
	return err
}

// lines gives a text of a browser the line ends that everybody else uses.
func lines(text string) string { return strings.ReplaceAll(text, "\r\n", "\n") }

// field returns a text of a form without space around it.
func field(r *http.Request, name string, most int) (string, error) {
	text := strings.TrimSpace(r.PostFormValue(name))
	if len(text) > most {
		return "", status{http.StatusBadRequest, fmt.Sprintf("The field %s has %d bytes, at most %d are taken.", name, len(text), most)}
	}
	return text, nil
}
