package refstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/cloister/cloister/broker/store"
)

func TestRefusedValues(t *testing.T) {
	w := newWorld(t)
	numbers := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%d,", i)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	names := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"n%d":1,`, i)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	for name, c := range map[string][2]string{
		"null":         {`{"a":null}`, "a null in it"},
		"null in list": {`{"a":["x",null]}`, "a null in it"},
		"null within":  {`{"a":{"b":[{"c":null}]}}`, "a null in it"},
		"deep":         {`{"a":` + strings.Repeat("[", 17) + strings.Repeat("]", 17) + `}`, "more than 16 levels"},
		"member twice": {`{"a":{"b":1,"b":2}}`, `"b" twice`},
		"elements":     {`{"a":[` + numbers(4097) + `]}`, "4097 elements"},
		"names":        {`{` + names(4097) + `}`, "4097 reference values"},
		"long name":    {`{"` + strings.Repeat("x", 513) + `":1}`, "513 bytes"},
		"size":         {`{"a":"` + strings.Repeat("x", maxValue) + `"}`, "bytes, at most"},
		"not UTF-8":    {"{\"a\":\"\xff\"}", "not a JSON object"},
	} {
		t.Run(name, func(t *testing.T) {
			w := *w
			w.T = t
			w.refuse(Message{}, c[0], c[1])
		})
	}
	w.refuse(Message{Mode: "merge"}, `{"a":1}`, `mode "merge"`)
	w.refuse(Message{Group: "a\x00"}, `{"a":1}`, "control character")
	w.refuse(Message{Group: strings.Repeat("x", 257)}, `{"a":1}`, "257 bytes")
	w.refuse(Message{Mode: ModeAdd}, `{"a":[]}`, "empty list")
	w.refuse(Message{Type: "in-toto"}, `{}`, "no key is configured")
	if _, err := w.Register(t.Context(), make([]byte, maxMessage+1), "admin"); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("large message: %v", err)
	}
	if _, err := w.Register(t.Context(), compose(t, Message{}, `{"a":1}`), strings.Repeat("x", 257)); err == nil {
		t.Error("a long registrant is accepted")
	}
	if list, err := w.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("refused messages left %v, %v", list, err)
	}
}

func TestBoundsOfARecord(t *testing.T) {
	w := newWorld(t)
	var b strings.Builder
	for i := range maxElements {
		fmt.Fprintf(&b, `,"v%d"`, i)
	}
	w.register(Message{}, `{"a":[`+b.String()[1:]+`]}`)
	w.refuse(Message{Mode: ModeAdd}, `{"a":["one more"]}`, "4097 elements")
	for i := range maxGroups {
		w.register(Message{Group: fmt.Sprint(i)}, `{"g":[1]}`)
	}
	w.refuse(Message{Group: "one more"}, `{"g":[1]}`, "257 groups")
}

func TestUnsignedNeedsAnAdministrator(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Register(t.Context(), compose(t, Message{}, `{"a":1}`), ""); err == nil || !strings.Contains(err.Error(), "administrator") {
		t.Errorf("got %v", err)
	}
	w.is("a", "")
}

// TestProvenance registers an unsigned CoRIM that ends before the store's lifetime does.
func TestProvenance(t *testing.T) {
	w := newWorld(t)
	type m = map[any]any
	encode := func(v any) []byte {
		b, err := cbor.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	end := w.start.Add(30 * day)
	comid := encode(m{4: m{0: []any{[]any{m{0: m{1: "ACME"}}, []any{m{0: "fw", 1: m{2: []any{[]any{1, bytes.Repeat([]byte{1}, 32)}}}}}}}}})
	doc := encode(cbor.Tag{Number: 501, Content: m{1: []any{cbor.Tag{Number: 506, Content: comid}}, 4: m{1: end.Unix()}}})
	w.register(Message{Type: "corim", Group: "firmware"}, string(doc))
	want := Approval{Group: "firmware", Registered: w.start, Expiration: end, By: "admin", Source: "corim", Signer: Unsigned}
	r, err := w.Get(t.Context(), "ACME/fw/digests")
	if err != nil || len(r.Elements) != 1 || r.Elements[0].Approvals[0] != want {
		t.Fatalf("record is %+v, %v", r, err)
	}
	if r.By != "admin" || r.Source != "corim" || r.Signer != Unsigned || !r.Registered.Equal(w.start) || !r.Expiration.Equal(end) {
		t.Errorf("record is %+v", r)
	}
	raw, err := json.Marshal(r)
	stored := `{"version":"0.1.0","name":"ACME/fw/digests","expiration":"2026-01-31T00:00:00Z","value":["0101`
	if err != nil || !strings.HasPrefix(string(raw), stored) {
		t.Errorf("record is written as %s, %v", raw, err)
	}
	w.on(30)
	w.is("ACME/fw/digests", "")
	w.refuse(Message{Type: "corim"}, string(doc), "was valid until")
	trust, err := LoadTrust(Config{})
	if err != nil {
		t.Fatal(err)
	}
	WithTrust(nil)(w.Store)
	w.SetTrust(trust)
	if _, err := w.Get(t.Context(), "ACME/fw/digests"); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
}

func FuzzRegister(f *testing.F) {
	f.Add([]byte(`{"x":["a",1,{"k":[]}],"s":true}`), []byte(`{"x":["b"],"s":true}`), "g", true)
	f.Add([]byte(`{"x":[null]}`), []byte(`{"x":1}`), "", false)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, first, second []byte, group string, add bool) {
		s := New(memory{}, func() time.Time { return now }, time.Hour)
		m := Message{Group: group}
		if _, err := s.Register(t.Context(), compose(t, m, string(first)), "a"); err != nil {
			return
		}
		if add {
			m.Mode = ModeAdd
		}
		added, removed, changed, diffErr := s.Diff(t.Context(), compose(t, m, string(second)))
		names, err := s.Register(t.Context(), compose(t, m, string(second)), "b")
		if (err == nil) != (diffErr == nil) {
			t.Fatalf("Diff says %v, Register %v", diffErr, err)
		}
		if add && len(removed) > 0 {
			t.Fatalf("adding removes %v (added %v, changed %v)", removed, added, changed)
		}
		for _, n := range names {
			r, err := s.Get(t.Context(), n)
			if err != nil || !json.Valid(r.Value) || string(r.Value) == "null" ||
				r.List() && len(r.Elements) == 0 && string(r.Value) != "[]" {
				t.Fatalf("%q is %+v, %v", n, r, err)
			}
		}
	})
}

// FuzzDecode reads records from a store that something else wrote to.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"x","expiration":"2026-06-01T00:00:00Z","value":["a",null]}`))
	f.Add([]byte(`{"value":1,"elements":[{"value":1,"approvals":[{"expiration":"2026-06-01T00:00:00Z"}]},{"value":null}]}`))
	f.Add([]byte(`{"value":[],"elements":[{}],"removed":true}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		db := memory{"x": raw}
		s := New(db, func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }, 0)
		if v, err := s.Lookup(t.Context(), "x"); err == nil && v != nil && (!json.Valid(v) || string(v) == "null") {
			t.Fatalf("value is %s", v)
		}
		if _, err := s.Register(t.Context(), compose(t, Message{Mode: ModeAdd, Group: "g"}, `{"x":["n"]}`), "a"); err == nil {
			if v, err := s.Lookup(t.Context(), "x"); err != nil || !bytes.Contains(v, []byte(`"n"`)) {
				t.Fatalf("added, value is %s, %v", v, err)
			}
		}
		if _, err := s.DeleteGroup(t.Context(), "g"); err != nil && !errors.Is(err, store.ErrNotFound) && json.Valid(raw) {
			t.Logf("deleting: %v", err)
		}
	})
}
