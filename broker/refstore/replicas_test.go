package refstore_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/refstore"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/store/postgres"
	server "github.com/cloister/cloister/test/postgres"
)

func message(t *testing.T, group, payload string) []byte {
	t.Helper()
	raw, err := json.Marshal(refstore.Message{
		Type: "sample", Mode: refstore.ModeAdd, Group: group, Payload: base64.StdEncoding.EncodeToString([]byte(payload)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestReplicas lets two brokers on one PostgreSQL register, remove and withdraw values of the same names at the same time.
func TestReplicas(t *testing.T) {
	srv := server.Start(t)
	ctx := t.Context()
	var brokers []*refstore.Store
	for range 2 {
		db, err := postgres.Open(ctx, postgres.Config{
			Host: srv.Dir, Port: srv.Port, Database: server.Database, User: server.User, PasswordFile: srv.PasswordFile,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		brokers = append(brokers, refstore.New(db, time.Now, 0))
	}
	const each = 24
	if _, err := brokers[0].Register(ctx, message(t, "gone", `{"x":["gone"],"y":["gone"],"only":["gone"]}`), "admin"); err != nil {
		t.Fatal(err)
	}
	for i := range each {
		if _, err := brokers[0].Register(ctx, message(t, "", fmt.Sprintf(`{"x":["old%d"]}`, i)), "admin"); err != nil {
			t.Fatal(err)
		}
	}
	var wait sync.WaitGroup
	for n, b := range brokers {
		wait.Go(func() {
			for i := range each {
				if _, err := b.Register(ctx, message(t, fmt.Sprintf("pod%d", n), fmt.Sprintf(`{"x":["%d-%d"],"y":["%d-%d"]}`, n, i, n, i)), "admin"); err != nil {
					t.Errorf("broker %d: registering: %v", n, err)
				}
			}
		})
		wait.Go(func() {
			for i := n; i < each; i += 2 {
				if err := b.Remove(ctx, "x", json.RawMessage(fmt.Sprintf(`"old%d"`, i))); err != nil {
					t.Errorf("broker %d: removing: %v", n, err)
				}
			}
		})
	}
	removed := make(chan error, 2)
	for _, b := range brokers {
		go func() { _, err := b.DeleteGroup(ctx, "gone"); removed <- err }()
	}
	wait.Wait()
	first, second := <-removed, <-removed
	if first != nil && second != nil {
		t.Errorf("the group was removed by nobody: %v, %v", first, second)
	}
	for _, err := range []error{first, second} {
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	}
	for _, name := range []string{"x", "y"} {
		r, err := brokers[1].Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := json.Unmarshal(r.Value, &got); err != nil {
			t.Fatal(err)
		}
		var want []string
		for n := range brokers {
			for i := range each {
				want = append(want, fmt.Sprintf("%d-%d", n, i))
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s is %q, want the %d that were registered and none that was removed", name, got, len(want))
		}
	}
	if _, err := brokers[0].Get(ctx, "only"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a value of the removed group: %v", err)
	}
}
