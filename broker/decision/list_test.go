package decision

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/store"
)

func TestList(t *testing.T) {
	db, err := store.Open(t.TempDir() + "/s.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	s, ctx, start := NewStore(db, 20), t.Context(), time.Unix(1_800_000_000, 0)
	names := map[string]string{} // by id
	for i := range 30 {          // the first ten are dropped
		id, err := NewID(start.Add(time.Duration(i) * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		r := Record{ID: id, Time: start, Kind: KindAttestation, Decision: "allow", Parts: []Part{{Status: "affirming",
			Evidence: json.RawMessage(`{"a":1}`)}}}
		if i%2 == 1 {
			r.Kind, r.Parts = KindResource, nil
		}
		if i%3 == 0 {
			r.Decision = "deny"
		}
		if i == 28 {
			r.Parts[0].Status = "warning"
		}
		names[id] = fmt.Sprint(i)
		if err := s.Put(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	list := func(o ListOptions) []Record {
		t.Helper()
		records, err := s.List(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		return records
	}
	show := func(records []Record) string {
		var got []string
		for _, r := range records {
			got = append(got, names[r.ID])
		}
		return strings.Join(got, " ")
	}
	for _, tc := range []struct {
		o    ListOptions
		want string
	}{
		{ListOptions{Limit: 3}, "29 28 27"},
		{ListOptions{Kind: KindResource, Decision: "deny"}, "27 21 15"},
		{ListOptions{Kind: KindAttestation, Status: "warning"}, "28"},
		{ListOptions{Before: list(ListOptions{Limit: 3})[2].ID, Limit: 2}, "26 25"},
		{ListOptions{Before: list(ListOptions{})[19].ID}, ""},
		{ListOptions{Kind: "nothing"}, ""},
	} {
		if got := show(list(tc.o)); got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.o, got, tc.want)
		}
	}
	all := list(ListOptions{Limit: 1_000_000})
	if len(all) != 20 || all[1].Parts[0].Evidence != nil {
		t.Errorf("%d records, evidence %s", len(all), all[1].Parts[0].Evidence)
	}
	if _, err := s.List(ctx, ListOptions{Before: "../x"}); err == nil {
		t.Error("an id that is none was taken")
	}
}
