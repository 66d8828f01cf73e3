package kms

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/broker/cloud/cloudtest"
	"github.com/cloister/cloister/broker/seal"
)

func TestStorageKey(t *testing.T) {
	first, second := cloudtest.File(t, "kek", strings.Repeat("a", 32)), cloudtest.File(t, "kek", strings.Repeat("b", 32))
	read := func(text string) StorageKey {
		c := DefaultStorageKey()
		if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := read(""); c.Validate() != nil || c.Wrapped() {
		t.Errorf("the default: %v", c.Validate())
	}
	keep := seal.InFile(t.TempDir()+"/store.keys", time.Now)
	open := func(text string, noCreate bool) (*seal.Keys, error) {
		return read(text).Open(t.Context(), keep, Outside{}, noCreate, time.Now)
	}
	old := fmt.Sprintf("identity=\"prod\"\nprovider=\"key-file\"\n[key_file]\nfile=%q\n", first)
	if _, err := open(old, true); err == nil {
		t.Error("a key is made for a store that was sealed with another")
	}
	k, err := open(old, false)
	if err != nil {
		t.Fatal(err)
	}
	next := fmt.Sprintf("identity=\"prod\"\nprovider=\"key-file\"\n[key_file]\nfile=%q\n", second)
	if _, err := open(next, true); err == nil || !strings.Contains(err.Error(), "previous") {
		t.Errorf("without the service from before: %v", err)
	}
	both := next + fmt.Sprintf("[[previous]]\nprovider=\"key-file\"\n[previous.key_file]\nfile=%q\n", first)
	moved, err := open(both, true)
	if err != nil || moved.ID() != k.ID() {
		t.Fatal(err)
	}
	if _, err := moved.Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := open(next, true); err != nil {
		t.Errorf("after wrapping anew: %v", err)
	}
	for _, bad := range []string{
		"provider=\"key-file\"", "provider=\"aws-kms\"\nidentity=\"a\"", "provider=\"none\"\nidentity=\"a\"", "old_files=[\"a\"]",
		old[:strings.Index(old, "[")] + "keep=\"tape\"\n" + old[strings.Index(old, "["):], old + "[[previous]]\nprovider=\"aws-kms\"\n",
	} {
		if read(bad).Validate() == nil {
			t.Errorf("%s: it is taken", bad)
		}
	}
}
