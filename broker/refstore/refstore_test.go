package refstore

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/store"
)

func newStore(t *testing.T, now func() time.Time) *Store {
	t.Helper()
	db, err := store.Open(t.TempDir() + "/s.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return New(db, now, 0)
}

func message(kind, payload string) []byte {
	return fmt.Appendf(nil, `{"version":"0.1.0","type":%q,"payload":%q}`, kind, base64.StdEncoding.EncodeToString([]byte(payload)))
}

func TestRegisterAndExpire(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s, ctx := newStore(t, func() time.Time { return now }), t.Context()
	names, err := s.Register(ctx, message("sample", `{"b":["x"],"rvps:///a/b:tag":3}`), "me")
	if err != nil || strings.Join(names, " ") != "b rvps:///a/b:tag" {
		t.Fatalf("registered %v, %v", names, err)
	}
	if v, err := s.Lookup(ctx, "b"); err != nil || string(v) != `["x"]` {
		t.Errorf("b = %s, %v", v, err)
	}
	if v, err := s.Lookup(ctx, "c"); err != nil || v != nil {
		t.Errorf("c = %s, %v, want nothing", v, err)
	}
	r, err := s.Get(ctx, "b")
	if err != nil || r.By != "me" || !r.Registered.Equal(now) || !r.Expiration.Equal(now.Add(DefaultLifetime)) {
		t.Errorf("record is %+v, %v", r, err)
	}
	now = now.Add(DefaultLifetime)
	if v, err := s.Lookup(ctx, "b"); err != nil || v != nil {
		t.Errorf("expired b = %s, %v, want nothing", v, err)
	}
	if _, err := s.Get(ctx, "b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("expired b: %v", err)
	}
	if list, err := s.List(ctx); err != nil || len(list) != 2 {
		t.Errorf("list is %v, %v", list, err)
	}
}

func TestRefusedMessages(t *testing.T) {
	s := newStore(t, time.Now)
	for _, tc := range []struct{ text, says string }{
		{`{"version":"0.2.0","type":"sample","payload":""}`, `version "0.2.0", want "0.1.0"`},
		{`{"type":"magic","payload":""}`, `type "magic", known: corim, in-toto, sample, swid`},
		{`{"type":"sample","payload":"%"}`, "payload"},
		{string(message("sample", `[1]`)), "not a JSON object"},
		{string(message("sample", `{}`)), "names no value"},
		{string(message("sample", `{"":1}`)), "1 to 512"},
		{string(message("sample", `{"a\u0000":1}`)), "control character"},
		{`{`, "reading reference value message"},
	} {
		if _, err := s.Register(t.Context(), []byte(tc.text), "me"); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error %v, want one with %q", tc.text, err, tc.says)
		}
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("refused messages left %v, %v", list, err)
	}
}
