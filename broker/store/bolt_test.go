package store_test

import (
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/broker/store/storetest"
)

func TestBolt(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b, err := store.Open(t.TempDir()+"/s.db", store.WithClock(func() time.Time { return now }))
	if err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, b, func(d time.Duration) { now = now.Add(d) })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Health(t.Context()); err == nil {
		t.Error("a closed store is healthy")
	}
}

// TestOldFile opens a file from before values had versions.
func TestOldFile(t *testing.T) {
	path := t.TempDir() + "/s.db"
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		bk, err := tx.CreateBucket([]byte(store.KBS))
		if err != nil {
			return err
		}
		return bk.Put([]byte("k"), []byte("old"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := store.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	e, err := b.Load(t.Context(), store.KBS, "k")
	if err != nil || string(e.Value) != "old" || !e.Expires.IsZero() {
		t.Fatalf("%+v, %v", e, err)
	}
	if _, err := b.CompareAndSwap(t.Context(), store.KBS, "k", e.Version, []byte("new"), store.Limit{}); err != nil {
		t.Error(err)
	}
	if _, err := b.CompareAndSwap(t.Context(), store.KBS, "k", e.Version, []byte("newer"), store.Limit{}); err == nil {
		t.Error("one version was swapped twice")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
