package ratelimit

import (
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

func count(l *Limiter, name string, tries int) (n int) {
	for range tries {
		if ok, _ := l.Allow(name); ok {
			n++
		}
	}
	return n
}

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	l := New(Limit{PerSecond: 2, Burst: 3}, 100, func() time.Time { return now })
	if got := count(l, "a", 10); got != 3 {
		t.Errorf("%d of a burst of 10 are admitted, want 3", got)
	}
	if got := count(l, "b", 1); got != 1 {
		t.Error("one name is held back by another")
	}
	if _, wait := l.Allow("a"); wait != 500*time.Millisecond {
		t.Errorf("the wait is %s, want 500ms", wait)
	}
	now = now.Add(time.Second)
	if got := count(l, "a", 10); got != 2 {
		t.Errorf("%d are admitted after a second, want 2", got)
	}
	now = now.Add(-time.Hour)
	if got := count(l, "a", 10); got != 0 {
		t.Errorf("%d are admitted after the clock went back, want 0", got)
	}
	now = now.Add(time.Second)
	if got := count(l, "a", 10); got != 2 {
		t.Errorf("%d are admitted a second after the clock went back, want 2", got)
	}
	now = now.Add(1000 * time.Hour)
	if got := count(l, "a", 10); got != 3 {
		t.Errorf("%d are admitted after a long time, want the burst", got)
	}
	if l.Refused() == 0 {
		t.Error("refusals are not counted")
	}
	if got := count(New(Limit{}, 1, time.Now), "a", 100); got != 100 {
		t.Error("no limit limits")
	}
}

// TestFlood has more names than there are buckets.
func TestFlood(t *testing.T) {
	now := time.Unix(1000, 0)
	l := New(Limit{PerSecond: 1, Burst: 1}, 50, func() time.Time { return now })
	for i := range 1000 {
		if ok, _ := l.Allow(fmt.Sprint(i)); !ok {
			t.Fatalf("name %d is held back by others", i)
		}
		// Somebody who asks all the time is not forgotten in the flood.
		if ok, _ := l.Allow("busy"); ok != (i == 0) {
			t.Fatalf("after %d names the busy one is admitted: %v", i, ok)
		}
	}
	if l.Len() != 50 {
		t.Errorf("%d names are kept, want 50", l.Len())
	}
	long := strings.Repeat("x", 1<<20)
	l.Allow(long)
	if ok, _ := l.Allow(long[:maxName]); ok {
		t.Error("a long name is kept as a whole")
	}
}

func TestTogether(t *testing.T) {
	l := New(Limit{PerSecond: 1e-9, Burst: 100}, 4, time.Now)
	var mu sync.Mutex
	total := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			n := count(l, "a", 100)
			mu.Lock()
			total += n
			mu.Unlock()
		})
	}
	wg.Wait()
	if total != 100 {
		t.Errorf("%d are admitted at the same time, want 100", total)
	}
}

func TestValidate(t *testing.T) {
	for _, l := range []Limit{{PerSecond: -1}, {PerSecond: 1}, {Burst: -1}, {PerSecond: math.NaN(), Burst: 1}, {PerSecond: math.Inf(1), Burst: 1}} {
		if l.Validate() == nil {
			t.Errorf("%+v is taken", l)
		}
	}
	for _, l := range []Limit{{}, {PerSecond: 0.5, Burst: 1}} {
		if err := l.Validate(); err != nil {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

func TestNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"2001:db8:1:2:ffff::": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64", "@": "@",
	} {
		if got := Network(in); got != want {
			t.Errorf("%s counts as %s, want %s", in, got, want)
		}
	}
}

func TestClient(t *testing.T) {
	p, err := ParseProxies([]string{"10.0.0.0/8", "2001:db8::1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		what, peer string
		header     []string
		want       string
	}{
		{"no proxy", "192.0.2.1:5", nil, "192.0.2.1"},
		{"a client that lies", "192.0.2.1:5", []string{"198.51.100.1"}, "192.0.2.1"},
		{"one proxy", "10.0.0.1:5", []string{"198.51.100.1"}, "198.51.100.1"},
		{"two proxies", "10.0.0.1:5", []string{"198.51.100.1, 10.2.3.4"}, "198.51.100.1"},
		{"a client that lies to the proxy", "10.0.0.1:5", []string{"1.1.1.1, 198.51.100.1"}, "198.51.100.1"},
		{"in two headers", "10.0.0.1:5", []string{"1.1.1.1", "198.51.100.1, 10.2.3.4"}, "198.51.100.1"},
		{"in two headers, the last is of proxies only", "10.0.0.1:5", []string{"1.1.1.1,198.51.100.1", "10.2.3.4"}, "198.51.100.1"},
		{"a client that calls itself a proxy", "10.0.0.1:5", []string{"10.9.9.9, 198.51.100.1"}, "198.51.100.1"},
		{"all are proxies", "10.0.0.1:5", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"no header", "10.0.0.1:5", nil, "10.0.0.1"},
		{"noise", "10.0.0.1:5", []string{"198.51.100.1, what"}, "10.0.0.1"},
		{"noise behind a good one", "10.0.0.1:5", []string{"what, 198.51.100.1"}, "198.51.100.1"},
		{"empty", "10.0.0.1:5", []string{""}, "10.0.0.1"},
		{"with ports", "10.0.0.1:5", []string{"[2001:db8:9::9]:443"}, "2001:db8:9::9"},
		{"IPv6 proxy", "[2001:db8::1]:5", []string{"[2001:db8:9::9]"}, "2001:db8:9::9"},
		{"mapped", "[::ffff:10.0.0.1]:5", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"many hops", "10.0.0.1:5", []string{strings.Repeat("10.0.0.2,", 1000)}, "10.0.0.1"},
		{"no address", "@", nil, "@"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr, r.Header = tc.peer, http.Header{"X-Forwarded-For": tc.header}
		if got := p.Client(r); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.what, got, tc.want)
		}
	}
	for _, bad := range []string{"", "10.0.0.0/33", "host", "0.0.0.0/0", "::/0", "::ffff:10.0.0.0/104"} {
		if _, err := ParseProxies([]string{bad}); err == nil {
			t.Errorf("proxy %q is taken", bad)
		}
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr, r.Header = "10.0.0.1:5", http.Header{"X-Forwarded-For": {"1.1.1.1"}}
	if got := (*Proxies)(nil).Client(r); got != "10.0.0.1" {
		t.Errorf("without proxies the address is %s", got)
	}
}

func FuzzClient(f *testing.F) {
	p, err := ParseProxies([]string{"10.0.0.0/8"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("10.0.0.1:1", "1.2.3.4, 10.0.0.2")
	f.Add("10.0.0.1:1", ",,,")
	f.Fuzz(func(t *testing.T, peer, header string) {
		r := &http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {header}}}
		Network(p.Client(r))
	})
}
