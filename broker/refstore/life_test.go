package refstore

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/store"
)

const day = 24 * time.Hour

// world is a store with a clock that tests set.
type world struct {
	*testing.T
	*Store
	start time.Time
	now   time.Time
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, start: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	w.now = w.start
	w.Store = newStore(t, func() time.Time { return w.now })
	return w
}

// on sets the day.
func (w *world) on(n int) { w.now = w.start.Add(time.Duration(n) * day) }

func compose(t testing.TB, m Message, payload string) []byte {
	t.Helper()
	if m.Type == "" {
		m.Type = "sample"
	}
	m.Payload = base64.StdEncoding.EncodeToString([]byte(payload))
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (w *world) register(m Message, payload string) {
	w.Helper()
	if _, err := w.Register(w.Context(), compose(w, m, payload), "admin"); err != nil {
		w.Fatalf("registering %s: %v", payload, err)
	}
}

func (w *world) refuse(m Message, payload, want string) {
	w.Helper()
	if _, err := w.Register(w.Context(), compose(w, m, payload), "admin"); err == nil || !strings.Contains(err.Error(), want) {
		w.Errorf("registering %s: %v, want an error with %q", payload, err, want)
	}
}

func (w *world) is(name, want string) {
	w.Helper()
	v, err := w.Lookup(w.Context(), name)
	if err != nil || string(v) != want {
		w.Errorf("day %d: %s = %s, %v, want %s", int(w.now.Sub(w.start)/day), name, v, err, want)
	}
}

func TestAddingRenewsNothing(t *testing.T) {
	for _, mode := range []string{ModeReplace, ModeAdd} {
		w := newWorld(t)
		w.register(Message{}, `{"x":["a"]}`)
		w.on(100)
		if mode == ModeAdd {
			w.register(Message{Mode: ModeAdd}, `{"x":["b"]}`)
		} else {
			w.register(Message{}, `{"x":["a","b"]}`) // what a tool does that reads, adds and writes
		}
		w.is("x", `["a","b"]`)
		w.on(365)
		w.is("x", `["b"]`)
		if list, err := w.List(t.Context()); err != nil || string(list[0].Value) != `["b"]` || len(list[0].Elements) != 1 {
			t.Errorf("list is %+v, %v", list, err)
		}
		w.on(465)
		w.is("x", "")
		if list, err := w.List(t.Context()); err != nil || len(list) != 1 || string(list[0].Value) != `["a","b"]` {
			t.Errorf("expired list is %+v, %v", list, err)
		}
	}
}

func TestRenewing(t *testing.T) {
	w := newWorld(t)
	yes, no := true, false
	w.register(Message{}, `{"x":["a","b"],"s":1}`)
	w.on(100)
	w.register(Message{Mode: ModeAdd}, `{"x":["b"]}`) // renews b alone
	w.register(Message{}, `{"s":1}`)
	w.on(365)
	w.is("x", `["b"]`)
	w.is("s", "1")
	w.register(Message{}, `{"x":["b"]}`) // brings nothing new: renews what it names
	w.on(600)
	w.is("x", `["b"]`)
	w.register(Message{Renew: &yes}, `{"x":["b","c"]}`)
	w.on(900)
	w.is("x", `["b","c"]`)
	w.register(Message{Renew: &no, Mode: ModeAdd}, `{"x":["b","d"],"t":2}`)
	w.on(965)
	w.is("x", `["d"]`)
}

func TestReplacing(t *testing.T) {
	w := newWorld(t)
	w.register(Message{}, `{"x":["a","b"],"s":{"v":1},"l":["q"]}`)
	w.register(Message{}, `{"x":["c"," b",{"k":1,"j":2}],"s":[3],"l":7}`)
	w.is("x", `["c"," b",{"k":1,"j":2}]`)
	w.is("s", "[3]")
	w.is("l", "7")
	w.register(Message{Mode: ModeAdd}, `{"x":[{ "j":2, "k":1 },"c"]}`) // equal elements, written otherwise
	w.is("x", `["c"," b",{"k":1,"j":2}]`)
	w.refuse(Message{Mode: ModeAdd}, `{"l":8}`, "to which nothing can be added")
	w.refuse(Message{Mode: ModeAdd}, `{"new":1,"l":[8]}`, "to which nothing can be added")
	w.is("new", "")
	w.register(Message{}, `{"x":[]}`)
	w.is("x", `[]`)
	w.on(365)
	w.is("x", "")
}

func TestGroups(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.register(Message{Group: "pod1"}, `{"fw":["f1"],"k":["k1"],"svn":3}`)
	w.register(Message{Group: "pod2"}, `{"fw":["f1","f2"],"k":["k2"],"svn":3}`)
	w.register(Message{}, `{"own":["o"]}`)
	w.is("fw", `["f1","f2"]`)
	w.is("k", `["k1","k2"]`)
	if groups, err := w.Groups(ctx); err != nil || strings.Join(groups, " ") != "pod1 pod2" {
		t.Errorf("groups are %v, %v", groups, err)
	}
	list, err := w.ListGroup(ctx, "pod1")
	if err != nil || len(list) != 3 || string(list[0].Value) != `["f1"]` || list[0].Elements[0].Approvals[0].Group != "pod1" ||
		len(list[0].Elements[0].Approvals) != 1 || string(list[2].Value) != "3" {
		t.Errorf("pod1 has %+v, %v", list, err)
	}
	// A group says all of its own, and nothing of others'.
	w.register(Message{Group: "pod2"}, `{"k":["k3"]}`)
	w.is("k", `["k1","k3"]`)
	w.refuse(Message{Group: "pod1"}, `{"svn":4}`, `group "pod1" wants 4`)
	w.refuse(Message{Group: "pod1"}, `{"k":"k1"}`, `a value that is no list is one for all`)
	w.refuse(Message{Group: "pod1"}, `{"k":[]}`, `empty list`)
	w.register(Message{Group: "pod1"}, `{"only":5}`)
	w.register(Message{Group: "pod1"}, `{"only":6}`)
	w.is("only", "6")

	names, err := w.DeleteGroup(ctx, "pod1")
	if err != nil || strings.Join(names, " ") != "fw k only svn" {
		t.Errorf("deleted %v, %v", names, err)
	}
	w.is("fw", `["f1","f2"]`) // pod2 approved both
	w.is("k", `["k3"]`)
	w.is("svn", "3")
	w.is("only", "")
	if _, err := w.DeleteGroup(ctx, "pod1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("second time: %v", err)
	}
	if _, err := w.DeleteGroup(ctx, "pod2"); err != nil {
		t.Error(err)
	}
	if list, err := w.List(ctx); err != nil || len(list) != 1 || list[0].Name != "own" {
		t.Errorf("left is %+v, %v", list, err)
	}
	for _, bad := range []string{"", "a\n", strings.Repeat("x", 257)} {
		if _, err := w.ListGroup(ctx, bad); err == nil {
			t.Errorf("group %q is accepted", bad)
		}
	}
}

// TestGroupsKeepTheirs registers, without a group, what a tool read that knows no groups: the values stay the group's.
func TestGroupsKeepTheirs(t *testing.T) {
	w := newWorld(t)
	w.register(Message{Group: "pod"}, `{"x":["a"]}`)
	w.register(Message{}, `{"x":["a","b"]}`)
	if _, err := w.DeleteGroup(t.Context(), "pod"); err != nil {
		t.Fatal(err)
	}
	w.is("x", `["b"]`)
}

func TestGroupsExpireApart(t *testing.T) {
	w := newWorld(t)
	w.register(Message{Group: "pod1"}, `{"x":["a"]}`)
	w.on(100)
	w.register(Message{Group: "pod2"}, `{"x":["a"]}`)
	w.on(365)
	w.is("x", `["a"]`)
	if r, err := w.Get(t.Context(), "x"); err != nil || len(r.Elements[0].Approvals) != 1 || r.Elements[0].Approvals[0].Group != "pod2" {
		t.Errorf("record is %+v, %v", r, err)
	}
	if list, err := w.ListGroup(t.Context(), "pod1"); err != nil || len(list) != 1 || w.now.Before(list[0].Expiration) {
		t.Errorf("pod1 has %+v, %v", list, err)
	}
	w.on(465)
	w.is("x", "")
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.register(Message{Group: "g"}, `{"x":["a","b",{"k":1,"j":2}],"s":"v"}`)
	w.on(10)
	w.register(Message{Mode: ModeAdd}, `{"x":["c"]}`)
	for _, v := range []string{`"b"`, `{"j":2, "k":1}`} {
		if err := w.Remove(ctx, "x", json.RawMessage(v)); err != nil {
			t.Error(err)
		}
	}
	w.is("x", `["a","c"]`)
	for _, c := range [][2]string{{"x", `"b"`}, {"s", `"w"`}, {"nothing", `1`}, {"x", `["a","c"]`}} {
		if err := w.Remove(ctx, c[0], json.RawMessage(c[1])); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("removing %s: %v", c, err)
		}
	}
	for _, bad := range []string{``, `1 2`, `x`, `null`} {
		if err := w.Remove(ctx, "x", json.RawMessage(bad)); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("removing %q: %v", bad, err)
		}
	}
	w.on(365)
	w.is("x", `["c"]`) // removing renewed nothing
	for _, c := range [][2]string{{"x", `"a"`}, {"x", `"c"`}, {"s", `"v"`}} {
		if err := w.Remove(ctx, c[0], json.RawMessage(c[1])); err != nil {
			t.Errorf("removing %s: %v", c, err)
		}
	}
	if list, err := w.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("left is %+v, %v", list, err)
	}
}

func TestDiff(t *testing.T) {
	w := newWorld(t)
	w.register(Message{}, `{"x":["a","b"],"s":1,"same":["z"],"kind":1}`)
	w.on(1)
	before, err := w.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	added, removed, changed, err := w.Diff(t.Context(), compose(t, Message{}, `{"x":["b","c"],"s":2,"same":["z"],"n":true,"kind":[1]}`))
	if err != nil {
		t.Fatal(err)
	}
	show := func(list []Change) string {
		var out []string
		for _, c := range list {
			out = append(out, fmt.Sprintf("%s=%s<%s until %s", c.Name, c.Value, c.Was, c.Expiration.Format(time.DateOnly)))
		}
		return strings.Join(out, "; ")
	}
	for _, c := range [][2]string{
		{show(added), "kind=1< until 2027-01-02; n=true< until 2027-01-02; x=\"c\"< until 2027-01-02"},
		{show(removed), "kind=1< until 2027-01-01; x=\"a\"< until 2027-01-01"},
		{show(changed), "s=2<1 until 2027-01-02; same=\"z\"< until 2027-01-02"},
	} {
		if c[0] != c[1] {
			t.Errorf("got  %s\nwant %s", c[0], c[1])
		}
	}
	if after, err := w.List(t.Context()); err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("Diff stored something: %+v, %v", after, err)
	}
	if _, _, _, err := w.Diff(t.Context(), []byte("{")); err == nil {
		t.Error("a message that is none is compared")
	}
}

// TestOldRecords reads what brokers before elements, and upstream, stored.
func TestOldRecords(t *testing.T) {
	w := newWorld(t)
	put := func(name, record string) {
		if err := w.db.(*store.Bolt).Put(t.Context(), store.ReferenceValues, map[string][]byte{name: []byte(record)}); err != nil {
			t.Fatal(err)
		}
	}
	put("x", `{"version":"0.1.0","name":"x","expiration":"2026-06-01T00:00:00Z","value":["a","b"],`+
		`"registered":"2025-06-01T00:00:00Z","by":"me","source":"sample"}`)
	put("up", `{"version":"0.1.0","name":"up","expiration":"2026-06-01T00:00:00Z","value":{"major":1}}`)
	put("nil", `{"version":"0.1.0","name":"nil","expiration":"2026-06-01T00:00:00Z","value":null}`)
	put("nils", `{"version":"0.1.0","name":"nils","expiration":"2026-06-01T00:00:00Z","value":[null,1]}`)
	put("empty", `{"version":"0.1.0","name":"empty","expiration":"2026-06-01T00:00:00Z","value":[]}`)
	w.is("x", `["a","b"]`)
	w.is("up", `{"major":1}`)
	w.is("nil", "")
	w.is("nils", "[1]")
	w.is("empty", "[]")
	r, err := w.Get(t.Context(), "x")
	if err != nil || r.By != "me" || r.Signer != Unsigned || len(r.Elements) != 2 || r.Elements[1].Approvals[0].By != "me" {
		t.Errorf("record is %+v, %v", r, err)
	}
	w.register(Message{Mode: ModeAdd, Group: "pod"}, `{"x":["c"],"up":{"major":1}}`)
	w.is("x", `["a","b","c"]`)
	if list, err := w.List(t.Context()); err != nil || len(list) != 5 {
		t.Errorf("list is %+v, %v", list, err)
	}
	w.on(200)
	w.is("x", `["c"]`)
	w.is("up", `{"major":1}`)
	w.is("empty", "")
	put("bad", `{`)
	if _, err := w.Get(t.Context(), "bad"); err == nil {
		t.Error("a broken record is read")
	}
}

// TestRemovedStaysRemoved reads what an older broker left of a value when it was killed before it had cleared it away.
func TestRemovedStaysRemoved(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	mark := []byte(`{"version":"0.1.0","name":"y","value":[],"removed":true}`)
	if err := w.db.(*store.Bolt).Put(ctx, store.ReferenceValues, map[string][]byte{"y": mark}); err != nil {
		t.Fatal(err)
	}
	w.is("y", "")
	if list, err := w.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("left is %+v, %v", list, err)
	}
	if err := w.Delete(ctx, "y"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("deleting it again: %v", err)
	}
	if err := w.Remove(ctx, "y", json.RawMessage("1")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("removing from it: %v", err)
	}
	w.register(Message{}, `{"y":2}`)
	w.is("y", "2")
	if err := w.Delete(ctx, "y"); err != nil {
		t.Error(err)
	}
	w.is("y", "")
}

// faster is a backend that another broker writes to whenever this one is about to.
type faster struct {
	backend
	other func()
}

func (f *faster) Swap(ctx context.Context, ns string, changes map[string]store.Change) error {
	if other := f.other; other != nil {
		f.other = nil
		other()
	}
	return f.backend.Swap(ctx, ns, changes)
}

// TestOtherBroker lets another broker change what this one has just read: nothing of either is lost.
func TestOtherBroker(t *testing.T) {
	ctx := t.Context()
	for name, tc := range map[string]struct {
		here func(w *world) error
		want string
	}{
		"register": {func(w *world) error {
			w.register(Message{Mode: ModeAdd, Group: "g"}, `{"x":["c"],"y":["c"]}`)
			return nil
		}, `["a","b","c"]`},
		"remove": {func(w *world) error { return w.Remove(ctx, "x", json.RawMessage(`"a"`)) }, `["b"]`},
		"group":  {func(w *world) error { _, err := w.DeleteGroup(ctx, "old"); return err }, `["b"]`},
		"delete": {func(w *world) error { return w.Delete(ctx, "x") }, ``},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.register(Message{Group: "old"}, `{"x":["a"]}`)
			db := w.db
			there := New(db, w.Store.now, 0)
			w.db = &faster{db, func() {
				if _, err := there.Register(ctx, compose(t, Message{Mode: ModeAdd, Group: "new"}, `{"x":["b"]}`), "admin"); err != nil {
					t.Error(err)
				}
			}}
			if err := tc.here(w); err != nil {
				t.Error(err)
			}
			w.is("x", tc.want)
		})
	}
	w := newWorld(t)
	w.db = always{w.db}
	w.refuse(Message{}, `{"x":1}`, "other brokers keep changing them")
	if !w.writing.TryLock() {
		t.Error("the store stays locked")
	}
}

// always is a backend whose values are never what they were.
type always struct{ backend }

func (always) Swap(context.Context, string, map[string]store.Change) error { return store.ErrChanged }

func TestConcurrentAdding(t *testing.T) {
	w := newWorld(t)
	const n = 20
	errs := make(chan error, n)
	for i := range n {
		message := compose(t, Message{Mode: ModeAdd}, fmt.Sprintf(`{"x":[%d]}`, i))
		go func() {
			_, err := w.Register(t.Context(), message, "admin")
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if r, err := w.Get(t.Context(), "x"); err != nil || len(r.Elements) != n {
		t.Errorf("record is %+v, %v, want %d elements", r, err, n)
	}
}

func TestElementsAreDistinct(t *testing.T) {
	w := newWorld(t)
	w.register(Message{}, `{"x":["a","a",1,1.0,"A"]}`)
	w.is("x", `["a",1,1.0,"A"]`)
	r, err := w.Get(t.Context(), "x")
	if err != nil || len(r.Elements) != 4 || !slices.ContainsFunc(r.Elements, func(e Element) bool { return string(e.Value) == "1.0" }) {
		t.Errorf("record is %+v, %v", r, err)
	}
}
