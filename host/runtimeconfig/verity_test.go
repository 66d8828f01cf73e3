package runtimeconfig

import (
	"strings"
	"testing"
)

const (
	rootHash   = "a3f1aa0d9c2b4e5f60718293a4b5c6d7e8f900112233445566778899aabbccdd"
	goodVerity = "root_hash=" + rootHash + ",salt=0011aabb,data_blocks=65536,data_block_size=4096,hash_block_size=4096"
)

func TestParseVerity(t *testing.T) {
	v, err := ParseVerity(goodVerity)
	if err != nil {
		t.Fatal(err)
	}
	if v != (Verity{rootHash, "0011aabb", 65536, 4096, 4096}) || v.Sectors() != 524288 {
		t.Errorf("%+v, %d sectors", v, v.Sectors())
	}
	if _, err := ParseVerity(strings.Replace(goodVerity, "0011aabb", "-", 1)); err != nil {
		t.Errorf("without salt: %v", err)
	}
	for _, x := range []struct{ from, to string }{
		{"root_hash=a3", "root_hash="}, {"root_hash=a3", "root_hash=zz"}, {"salt=0011aabb", "salt="}, {"0011aabb", "0"}, {"data_blocks=65536,", ""},
		{"65536", "0"}, {"65536", "-1"}, {"65536", "9223372036854775807"}, {"65536", "x"}, {"data_block_size=4096", "data_block_size=4095"},
		{"hash_block_size=4096", "hash_block_size=131072"}, {"salt", "pepper"}, {"salt=0011aabb", "salt=0011aabb,salt=00"},
		{"0011aabb", `00" init=/bin/sh "`},
	} {
		if v, err := ParseVerity(strings.Replace(goodVerity, x.from, x.to, 1)); err == nil {
			t.Errorf("%s for %s was taken: %+v", x.to, x.from, v)
		}
	}
}

func FuzzParseVerity(f *testing.F) {
	f.Add(goodVerity)
	f.Fuzz(func(t *testing.T, text string) {
		v, err := ParseVerity(text)
		if err == nil && (v.Sectors() < 1 || strings.ContainsAny(v.RootHash+v.Salt, " \"\n")) {
			t.Errorf("%q: %+v", text, v)
		}
	})
}
