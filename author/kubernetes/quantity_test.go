package kubernetes

import "testing"

func TestQuantities(t *testing.T) {
	for q, want := range map[Quantity]int64{"1": 1, "1Ki": 1024, "1.5Ki": 1536, "2k": 2000, "1e3": 1000, "100m": 1, "0": 0, ".5Gi": 1 << 29} {
		if got, err := q.Bytes(); err != nil || got != want {
			t.Errorf("%s: got %d %v, expected %d", q, got, err, want)
		}
	}
	for _, q := range []Quantity{"", "-1", "1 Gi", "1gi", "1e99", "9999999999E", "NaN", "0x10", "1e-999999999"} {
		if got, err := q.Bytes(); err == nil {
			t.Errorf("%q is accepted as %d", q, got)
		}
	}
	if got, _ := Quantity("250m").Milli(); got != 250 {
		t.Errorf("250m is %d", got)
	}
}
