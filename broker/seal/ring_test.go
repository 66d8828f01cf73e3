package seal_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/store"
)

func TestRotate(t *testing.T) {
	path, ctx := t.TempDir()+"/store.key", t.Context()
	first, err := seal.LoadRing(path)
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.TempDir() + "/s.db")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	place := func(key string) (string, bool) { return "at:" + key, key != "plain" }
	values := map[string][]byte{"plain": []byte("not sealed")}
	for i := range 20 {
		key := fmt.Sprint(i)
		if values[key], err = first.Seal("at:"+key, []byte("secret "+key)); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Put(ctx, store.Resources, values); err != nil {
		t.Fatal(err)
	}

	old, err := seal.Rotate(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(old, first.ID()) {
		t.Errorf("the old key is in %s, want it to be named %s", old, first.ID())
	}
	alone, err := seal.LoadRing(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alone.Open("at:1", values["1"]); err == nil || !strings.Contains(err.Error(), first.ID()) {
		t.Errorf("opened without its key: %v", err)
	}
	ring, err := seal.LoadRing(path, old)
	if err != nil {
		t.Fatal(err)
	}
	if ring.ID() == first.ID() || len(ring.IDs()) != 2 {
		t.Errorf("keys are %v, the old one is %s", ring.IDs(), first.ID())
	}
	if plain, err := ring.Open("at:1", values["1"]); err != nil || string(plain) != "secret 1" {
		t.Errorf("an old value: %q, %v", plain, err)
	}
	if _, err := ring.Open("at:2", values["1"]); err == nil {
		t.Error("an old value opens in another place")
	}
	if n, err := seal.ResealAll(ctx, db, store.Resources, ring, place); err != nil || n != 20 {
		t.Errorf("%d values sealed anew, want 20, %v", n, err)
	}
	if n, err := seal.ResealAll(ctx, db, store.Resources, ring, place); err != nil || n != 0 {
		t.Errorf("%d values sealed anew by the second run, want none, %v", n, err)
	}
	err = db.Each(ctx, store.Resources, func(key string, value []byte) error {
		if key == "plain" {
			return nil
		}
		plain, err := alone.Open("at:"+key, value)
		if err == nil && string(plain) != "secret "+key {
			err = fmt.Errorf("%s is %q", key, plain)
		}
		return err
	})
	if err != nil {
		t.Errorf("without the old key: %v", err)
	}
	if v, err := db.Get(ctx, store.Resources, "plain"); err != nil || string(v) != "not sealed" {
		t.Errorf("a value that is not sealed became %q, %v", v, err)
	}
	if err := db.Put(ctx, store.Resources, map[string][]byte{"damaged": []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.ResealAll(ctx, db, store.Resources, ring, place); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged value: %v", err)
	}
	if _, err := seal.LoadRing(path, path+".absent"); err == nil {
		t.Error("an absent old key is made up")
	}
	if _, err := os.Stat(path + ".absent"); err == nil {
		t.Error("an absent old key was made")
	}
}
