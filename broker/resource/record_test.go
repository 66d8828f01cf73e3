package resource

import (
	"bytes"
	"testing"
)

func FuzzDecode(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(encode([]stored{
		{Version: Version{Number: 3, Time: start, Size: 2}, sealed: []byte("abc")},
		{Version: Version{Number: 1, Size: -1}, legacy: true},
	}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		versions, err := decode(raw)
		if err != nil {
			return
		}
		if len(versions) == 0 {
			t.Fatal("a record without versions")
		}
		if raw[0] != sealVersion && !bytes.Equal(encode(versions), raw) {
			t.Fatal("another record comes back")
		}
	})
}

func TestDamagedRecords(t *testing.T) {
	good := encode([]stored{
		{Version: Version{Number: 3, Time: start, Size: 2}, sealed: []byte("abc")},
		{Version: Version{Number: 2, Size: 1}, sealed: []byte("d")},
	})
	for i := range good {
		if _, err := decode(good[:i]); err == nil {
			t.Errorf("cut to %d bytes it is accepted", i)
		}
	}
	if _, err := decode(append(good, 0)); err == nil {
		t.Error("a byte too many is accepted")
	}
}
