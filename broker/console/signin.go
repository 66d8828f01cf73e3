package console

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/ratelimit"
)

// maxToken bounds a token, in bytes.
const maxToken = 16 << 10

// How often somebody may try to sign in: an address, and all together, so that many addresses cannot fill the audit log.
const (
	perAddress   = time.Minute / 10
	addressBurst = 5
	perBroker    = time.Second / 5
	brokerBurst  = 50
	maxAddresses = 4096
)

// attempts counts sign-ins.
type attempts struct {
	now func() time.Time

	mu  sync.Mutex
	by  map[string]*rate.Limiter
	all *rate.Limiter
}

func newAttempts(now func() time.Time) *attempts {
	return &attempts{now: now, by: map[string]*rate.Limiter{}, all: rate.NewLimiter(rate.Every(perBroker), brokerBurst)}
}

// admit reports whether one more attempt may be made from an address.
func (a *attempts) admit(address string) bool {
	now := a.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	one := a.by[address]
	if one == nil {
		if len(a.by) >= maxAddresses {
			for k, v := range a.by {
				if v.TokensAt(now) >= addressBurst {
					delete(a.by, k)
				}
			}
			if len(a.by) >= maxAddresses {
				clear(a.by)
			}
		}
		one = rate.NewLimiter(rate.Every(perAddress), addressBurst)
		a.by[address] = one
	}
	return one.AllowN(now, 1) && a.all.AllowN(now, 1)
}

// nextPage returns a path of the console that a person wanted, or "".
func nextPage(text string) string {
	u, err := url.Parse(text)
	if err != nil || len(text) > 2048 || u.Scheme != "" || u.Host != "" || u.User != nil || u.RawPath != "" ||
		u.Path != home && !strings.HasPrefix(u.Path, root) || strings.Contains(u.Path, "..") || strings.Contains(text, "\\") {
		return ""
	}
	return (&url.URL{Path: u.Path, RawQuery: u.RawQuery}).String()
}

type signInBody struct{ Next string }

func (c *Console) signInForm(w http.ResponseWriter, r *http.Request) {
	next := nextPage(r.URL.Query().Get("next"))
	s, err := c.session(w, r, true)
	if err == nil && s != nil {
		if next == "" {
			next = home
		}
		http.Redirect(w, r, next, http.StatusSeeOther)
		return
	}
	c.showSignIn(w, r, http.StatusOK, "", next)
}

func (c *Console) showSignIn(w http.ResponseWriter, r *http.Request, code int, problem, next string) {
	if err := c.render(w, r, code, "signin", page{Title: "Sign in", Problem: problem, Body: signInBody{next}}); err != nil {
		c.Log.ErrorContext(r.Context(), "console page", "error", err)
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
	}
}

func (c *Console) signIn(w http.ResponseWriter, r *http.Request) {
	if !c.attempts.admit(c.address(r)) {
		w.Header().Set("Retry-After", "10")
		c.showSignIn(w, r, http.StatusTooManyRequests, "Too many attempts. Wait ten seconds and try again.", "")
		return
	}
	if err := parseForm(r); err != nil {
		c.answer(w, r, nil, err)
		return
	}
	next := nextPage(r.PostFormValue("next"))
	token := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(r.PostFormValue("token")), "Bearer "))
	if len(token) > maxToken {
		c.showSignIn(w, r, http.StatusBadRequest, "That is too long for a token.", next)
		return
	}
	s := &session{who: adminauth.Call{Bearer: token}}
	if c.Caller != nil {
		if named := c.Caller(r); named.Certificate != "" && named.CertificateProblem == nil { // it may be wanted besides the token
			s.who.Certificate, s.who.Fingerprint, s.certified = named.Certificate, named.Fingerprint, true
		}
	}
	first, name, err := c.firstPage(r, s)
	entry := audit.Entry{Event: "console-sign-in", Decision: audit.Deny}
	if err != nil {
		entry.Reason = err.Error()
		c.noteAnyway(r, entry)
		c.showSignIn(w, r, http.StatusUnauthorized, "You cannot sign in with this token: "+err.Error(), next)
		return
	}
	entry.Decision, entry.Reason = audit.Allow, "signed in by token: "+name
	if err := c.Note(r, entry); err != nil {
		c.showSignIn(w, r, http.StatusServiceUnavailable, "The audit log cannot be written, so nobody can sign in.", next)
		return
	}
	c.sessions.end(c.cookieOf(r))
	key, s, err := c.sessions.start(s.who, name, s.certified)
	if err != nil {
		c.answer(w, r, nil, err)
		return
	}
	s.byToken = true // nobody knows the key yet
	http.SetCookie(w, c.cookie(key, int(fullLife/time.Second)))
	if next == "" {
		next = first
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

func (c *Console) signOut(w http.ResponseWriter, r *http.Request) {
	s, err := c.session(w, r, false)
	if err != nil {
		c.answer(w, r, nil, err)
		return
	}
	if s != nil {
		if err := parseForm(r); err != nil {
			c.answer(w, r, s, err)
			return
		}
		if !s.sameForm(r.PostFormValue("csrf")) {
			c.complain(w, r, s, http.StatusForbidden, "This form is not of your session, so you are still signed in.")
			return
		}
		c.sessions.end(c.cookieOf(r))
		c.noteAnyway(r, audit.Entry{Event: "console-sign-out", Decision: audit.Allow, Reason: "signed out: " + s.name})
	}
	http.SetCookie(w, c.cookie("", -1))
	http.Redirect(w, r, root+"sign-in", http.StatusSeeOther)
}

// address is what attempts to sign in are counted under: behind a proxy that of the client, or all would share the attempts of one; of
// IPv6 the network, or who has one would have all attempts there are.
func (c *Console) address(r *http.Request) string {
	remote := (*ratelimit.Proxies)(nil).Client
	if c.Remote != nil {
		remote = c.Remote
	}
	return ratelimit.Network(remote(r))
}
