package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/store"
)

// visit is one request of a signed-in administrator.
type visit struct {
	c     *Console
	w     http.ResponseWriter
	r     *http.Request
	s     *session
	admin string
}

// page is what every template gets.
type page struct {
	Title   string
	Section string
	Menu    []section
	Admin   string
	CSRF    string
	// Flash says what was done, Problem what was not.
	Flash   string
	Problem string
	// Certified tells that there is nothing to sign out of.
	Certified bool
	Body      any
}

// status is an error with the HTTP status to answer.
type status struct {
	code int
	text string
}

func (s status) Error() string { return s.text }

// read makes a handler of a page: it is shown to whom the call is allowed.
func (c *Console) read(call func() adminauth.Call, show func(v *visit) error) http.HandlerFunc {
	return c.visited(func(v *visit) error {
		if err := v.need(call()); err != nil {
			return err
		}
		return show(v)
	})
}

// readNamed is read for a page whose call has a name of the path in it.
func (c *Console) readNamed(name string, call func(string) adminauth.Call, show func(v *visit) error) http.HandlerFunc {
	return c.visited(func(v *visit) error {
		if err := v.need(call(v.r.PathValue(name))); err != nil {
			return err
		}
		return show(v)
	})
}

// visited finds the session and answers errors.
func (c *Console) visited(h func(v *visit) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), handleTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		s, err := c.session(w, r, true)
		if err != nil {
			c.complain(w, r, nil, http.StatusInternalServerError, err.Error())
			return
		}
		if s == nil {
			c.askToSignIn(w, r)
			return
		}
		if err := h(&visit{c: c, w: w, r: r, s: s}); err != nil {
			c.answer(w, r, s, err)
		}
	}
}

func (c *Console) askToSignIn(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		c.complain(w, r, nil, http.StatusUnauthorized, "Your session is over, so nothing was changed. Sign in and do it again.")
		return
	}
	http.Redirect(w, r, root+"sign-in?"+url.Values{"next": {r.URL.RequestURI()}}.Encode(), http.StatusSeeOther)
}

func (c *Console) answer(w http.ResponseWriter, r *http.Request, s *session, err error) {
	code := http.StatusInternalServerError
	var st status
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &st):
		code = st.code
	case errors.As(err, &large):
		code, err = http.StatusRequestEntityTooLarge, fmt.Errorf("the form has more than %d bytes", large.Limit)
	case errors.Is(err, adminauth.ErrDenied):
		code = http.StatusForbidden
	case errors.Is(err, store.ErrNotFound), errors.Is(err, rego.ErrUnknown):
		code = http.StatusNotFound
	default:
		c.Log.ErrorContext(r.Context(), "console page", "path", r.URL.Path, "error", err)
	}
	c.complain(w, r, s, code, err.Error())
}

// need admits the visitor to a call, or records that it was refused.
func (v *visit) need(call adminauth.Call) error {
	name, err := v.c.admit(v.r, v.s, call)
	if err != nil {
		entry := audit.Entry{Event: "admin", Decision: audit.Deny, Subject: call.Method + " " + clip(call.Path, 512),
			Reason: "console: " + err.Error()}
		v.c.noteAnyway(v.r, entry)
		return err
	}
	v.admin = name
	return nil
}

// may tells whether the visitor could make a call, to offer only what can be done. It is no permission.
func (v *visit) may(call adminauth.Call) bool {
	_, err := v.c.admit(v.r, v.s, call)
	return err == nil
}

// noteAnyway records what happened and is over. That it cannot be recorded changes nothing then, but is logged.
func (c *Console) noteAnyway(r *http.Request, e audit.Entry) {
	if err := c.Note(r, e); err != nil {
		c.Log.ErrorContext(r.Context(), "writing the audit log", "event", e.Event, "error", err)
	}
}

// show renders a page.
func (v *visit) show(name, title, section string, body any) error {
	return v.showWith(http.StatusOK, name, title, section, "", body)
}

// showWith renders a page with a status and a problem.
func (v *visit) showWith(code int, name, title, section, problem string, body any) error {
	p := page{
		Title: title, Section: section, Admin: v.admin, CSRF: v.s.csrf, Flash: v.s.said(), Problem: problem,
		Certified: v.s.certified && !v.s.byToken, Body: body,
	}
	for _, one := range v.c.sections() {
		if v.may(one.call) {
			p.Menu = append(p.Menu, one)
		}
	}
	return v.c.render(v.w, v.r, code, name, p)
}

func (c *Console) render(w http.ResponseWriter, r *http.Request, code int, name string, p page) error {
	t := c.pages[name]
	if t == nil {
		return fmt.Errorf("console has no page %q", name)
	}
	var out bytes.Buffer
	if err := t.ExecuteTemplate(&out, "layout", p); err != nil {
		return fmt.Errorf("making page %s: %w", name, err)
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(code)
	c.send(w, r, out.Bytes())
	return nil
}

// complain shows an error page; without a session it offers to sign in.
func (c *Console) complain(w http.ResponseWriter, r *http.Request, s *session, code int, text string) {
	p := page{Title: http.StatusText(code), Problem: text}
	var err error
	if s == nil {
		err = c.render(w, r, code, "problem", p)
	} else {
		v := &visit{c: c, w: w, r: r, s: s}
		err = v.showWith(code, "problem", p.Title, "", text, nil)
	}
	if err != nil {
		c.Log.ErrorContext(r.Context(), "console page", "error", err)
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
	}
}
