package console

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/cloister/cloister/broker/adminauth"
	"github.com/cloister/cloister/broker/audit"
)

const (
	// maxSessions bounds the memory of sessions; only who was admitted gets one.
	maxSessions = 256
	// idleLife is how long a session lasts without a request of a person; the script's polling is none.
	idleLife = 30 * time.Minute
	// fullLife is how long a session lasts at most.
	fullLife = 8 * time.Hour
	keySize  = 32
)

// session is a signed-in administrator.
type session struct {
	// who is what Admit is asked with, without method and path. It may hold a token and is therefore never printed.
	who adminauth.Call
	// certified tells that the client certificate of the connection is part of who.
	certified bool
	// byToken tells that a token was shown besides.
	byToken bool
	// name is the administrator's at sign-in, for the audit log.
	name string
	csrf string
	made time.Time

	mu    sync.Mutex
	used  time.Time
	flash string
}

// sessions keeps them by the digest of their cookie: who reads the memory of a process that is gone finds no cookie.
type sessions struct {
	now func() time.Time

	mu sync.Mutex
	by map[[sha256.Size]byte]*session
}

func newSessions(now func() time.Time) *sessions {
	return &sessions{now: now, by: map[[sha256.Size]byte]*session{}}
}

func randomText() (string, error) {
	raw := make([]byte, keySize)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("making a random text: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(raw), nil
}

// start makes a session and returns its cookie's value. When there are too many, the one that was not used for longest ends.
func (s *sessions) start(who adminauth.Call, name string, certified bool) (string, *session, error) {
	key, err := randomText()
	if err != nil {
		return "", nil, err
	}
	csrf, err := randomText()
	if err != nil {
		return "", nil, err
	}
	now := s.now()
	one := &session{who: who, certified: certified, name: name, csrf: csrf, made: now, used: now}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now)
	if len(s.by) >= maxSessions {
		var oldest [sha256.Size]byte
		var at time.Time
		for k, v := range s.by {
			if t := v.lastUse(); at.IsZero() || t.Before(at) {
				oldest, at = k, t
			}
		}
		delete(s.by, oldest)
	}
	s.by[sha256.Sum256([]byte(key))] = one
	return key, one, nil
}

// find returns a live session, or nil. touch tells that a person uses it.
func (s *sessions) find(key string, touch bool) *session {
	if key == "" || len(key) > 128 {
		return nil
	}
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now)
	one := s.by[sha256.Sum256([]byte(key))]
	if one != nil && touch {
		one.mu.Lock()
		one.used = now
		one.mu.Unlock()
	}
	return one
}

func (s *sessions) end(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.by, sha256.Sum256([]byte(key)))
}

// sweep drops sessions that are over, so that their tokens leave the memory. The lock is held.
func (s *sessions) sweep(now time.Time) {
	for k, v := range s.by {
		if v.over(now) {
			delete(s.by, k)
		}
	}
}

func (s *session) lastUse() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func (s *session) over(now time.Time) bool {
	return now.Sub(s.lastUse()) >= idleLife || now.Sub(s.made) >= fullLife
}

// say keeps a sentence for the next page; said takes it.
func (s *session) say(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flash = text
}

func (s *session) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := s.flash
	s.flash = ""
	return text
}

// sameForm tells whether a form comes from a page of this session.
func (s *session) sameForm(token string) bool {
	return subtle.ConstantTimeCompare([]byte(token), []byte(s.csrf)) == 1
}

// cookieName has the prefix that makes browsers insist on TLS, no domain and the path "/" where there is TLS.
func (c *Console) cookieName() string {
	if c.Secure {
		return "__Host-cloister-console"
	}
	return "cloister-console"
}

func (c *Console) cookie(value string, age int) *http.Cookie {
	k := &http.Cookie{
		Name: c.cookieName(), Value: value, Path: home, MaxAge: age, HttpOnly: true, Secure: c.Secure, SameSite: http.SameSiteStrictMode,
	}
	if c.Secure {
		k.Path = "/"
	}
	return k
}

// sameCertificate tells whether a connection has the certificate that the session began with, and that it still counts.
func (s *session) sameCertificate(named adminauth.Call) bool {
	who := s.who
	if s.byToken {
		who.Bearer = ""
	}
	return who == named
}

func (c *Console) cookieOf(r *http.Request) string {
	k, err := r.Cookie(c.cookieName())
	if err != nil {
		return ""
	}
	return k.Value
}

// session finds or, for a client certificate, makes the session of a request; nil when there is none. A session that began with a
// certificate is good on connections with that certificate only.
func (c *Console) session(w http.ResponseWriter, r *http.Request, touch bool) (*session, error) {
	var named adminauth.Call
	if c.Caller != nil {
		named = c.Caller(r)
		named.Method, named.Path = "", ""
	}
	s := c.sessions.find(c.cookieOf(r), touch)
	if s != nil && (!s.certified || s.sameCertificate(named)) {
		return s, nil
	}
	if named == (adminauth.Call{}) || r.Method != http.MethodGet || !touch {
		return nil, nil
	}
	_, name, err := c.firstPage(r, &session{who: named})
	if err != nil {
		return nil, nil // the certificate is of nobody here: a token may still be
	}
	entry := audit.Entry{Event: "console-sign-in", Decision: audit.Allow, Reason: "signed in by client certificate: " + name}
	if err := c.Note(r, entry); err != nil {
		return nil, errUnrecorded
	}
	key, s, err := c.sessions.start(named, name, true)
	if err != nil {
		return nil, err
	}
	http.SetCookie(w, c.cookie(key, int(fullLife/time.Second)))
	return s, nil
}
