package attest

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
)

func TestCookies(t *testing.T) {
	j := &cookies{}
	secure, plain := &url.URL{Scheme: "https", Host: "broker"}, &url.URL{Scheme: "http", Host: "broker"}
	show := func(u *url.URL) (text string) {
		for _, c := range j.Cookies(u) {
			text += c.String() + " "
		}
		return text
	}
	j.SetCookies(secure, []*http.Cookie{{Name: "session", Value: "1", Path: "/kbs", HttpOnly: true}, {Name: "lb", Value: "a b", Quoted: true, Secure: true}})
	if got := show(secure); got != "session=1 lb=\"a b\" " {
		t.Errorf("over TLS: %q", got)
	}
	if got := show(plain); got != "session=1 " {
		t.Errorf("in clear: %q", got)
	}
	j.SetCookies(secure, []*http.Cookie{{Name: "session", Value: "2"}, {Name: "lb", MaxAge: -1}})
	if got := show(secure); got != "session=2 " {
		t.Errorf("after a change: %q", got)
	}
	for i := range 100 {
		j.SetCookies(secure, []*http.Cookie{{Name: fmt.Sprint("c", i), Value: "x"}})
	}
	if n := len(j.Cookies(secure)); n != maxCookies {
		t.Errorf("%d cookies are kept", n)
	}
	j.SetCookies(secure, []*http.Cookie{{Name: "session", Value: "3"}})
	if got := j.Cookies(secure); got[len(got)-1].Value != "3" {
		t.Errorf("the session of a full jar: %v", got)
	}
}
