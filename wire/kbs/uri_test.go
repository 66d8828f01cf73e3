package kbs

import (
	"strings"
	"testing"
)

func TestParseResourceURI(t *testing.T) {
	for in, want := range map[string]struct {
		uri     ResourceURI
		text    string
		request string
	}{
		"kbs:///default/key/1":              {ResourceURI{"resource", "default/key/1", ""}, "kbs:///default/key/1", "/kbs/v0/resource/default/key/1"},
		"kbs+resource:///default/key/1":     {ResourceURI{"resource", "default/key/1", ""}, "kbs:///default/key/1", "/kbs/v0/resource/default/key/1"},
		"kbs://broker.local:8080/a/b/c":     {ResourceURI{"resource", "a/b/c", ""}, "kbs:///a/b/c", "/kbs/v0/resource/a/b/c"},
		"kbs://[::1]:8080/a":                {ResourceURI{"resource", "a", ""}, "kbs:///a", "/kbs/v0/resource/a"},
		"kbs+pkcs11:///resource/a/b/c?x=1&": {ResourceURI{"pkcs11", "resource/a/b/c", "x=1&"}, "kbs+pkcs11:///resource/a/b/c?x=1&", "/kbs/v0/pkcs11/resource/a/b/c?x=1&"},
		"kbs+nebula-ca:///credential?ip=10.0.0.1/24": {ResourceURI{"nebula-ca", "credential", "ip=10.0.0.1/24"},
			"kbs+nebula-ca:///credential?ip=10.0.0.1/24", "/kbs/v0/nebula-ca/credential?ip=10.0.0.1/24"},
		"kbs:///one": {ResourceURI{"resource", "one", ""}, "kbs:///one", "/kbs/v0/resource/one"},
	} {
		got, err := ParseResourceURI(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got != want.uri || got.String() != want.text || got.RequestPath() != want.request {
			t.Errorf("%s: got %+v, %s, %s", in, got, got, got.RequestPath())
		}
	}
	for _, in := range []string{
		"", "kbs", "kbs:", "kbs://", "kbs:///", "kbs://host", "kbs://host/", "kbs:///a//b", "kbs:///a/", "kbs:////a",
		"kbs:///a/../b", "kbs:///./a", "kbs:///..", "kbs:///a/%2e%2e/b", "kbs:///a b", "kbs:///a#b", "kbs:///a\\b", "kbs:///a\nb", "kbs:///a?", "kbs:///a? b", "kbs:///a?b#c",
		"kbs+:///a", "kbs+a/b:///c", "kbs+..:///c", "KBS:///a", "http:///a", "xkbs:///a", "kbs://user@host/a", "kbs:///ключ", "kbs:///\x00",
		"kbs:///kbs:///default/key/1", "kbs:///" + strings.Repeat("a", maxURILength),
	} {
		if got, err := ParseResourceURI(in); err == nil {
			t.Errorf("%q: accepted as %+v", in, got)
		}
	}
}

func FuzzParseResourceURI(f *testing.F) {
	for _, s := range []string{"kbs:///a/b/c", "kbs+p://h:1/a?b=c", "kbs:///../a", "kbs+:///"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseResourceURI(s)
		if err != nil {
			return
		}
		again, err := ParseResourceURI(u.String())
		if err != nil || again != u {
			t.Fatalf("%q is %+v, written as %s it is %+v, %v", s, u, u, again, err)
		}
		if p := u.RequestPath(); strings.Contains(p, "/../") || strings.Contains(p, "//") && u.Query == "" || !strings.HasPrefix(p, PathPrefix+"/") {
			t.Fatalf("%q asks for %s", s, p)
		}
	})
}
