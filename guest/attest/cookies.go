package attest

import (
	"net/http"
	"net/url"
	"sync"
)

// maxCookies bounds what a broker, or what is in front of it, may have kept.
const maxCookies = 32

// cookies keeps the cookies of one broker: the session's, and those by which a load balancer finds the same server again. The client
// asks no other host and follows no redirects, so that domains and paths have nothing to tell apart.
type cookies struct {
	mu   sync.Mutex
	kept []*http.Cookie
}

// SetCookies is part of http.CookieJar.
func (j *cookies) SetCookies(_ *url.URL, list []*http.Cookie) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range list {
		var others []*http.Cookie
		for _, k := range j.kept {
			if k.Name != c.Name {
				others = append(others, k)
			}
		}
		if c.MaxAge >= 0 && len(others) < maxCookies {
			others = append(others, c)
		}
		j.kept = others
	}
}

// Cookies is part of http.CookieJar.
func (j *cookies) Cookies(u *url.URL) []*http.Cookie {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []*http.Cookie
	for _, c := range j.kept {
		if u.Scheme == "https" || !c.Secure {
			out = append(out, &http.Cookie{Name: c.Name, Value: c.Value, Quoted: c.Quoted})
		}
	}
	return out
}
