package containerd

import (
	"slices"
	"testing"
)

// TestVersions reads the lists of versions that a user may give.
func TestVersions(t *testing.T) {
	for _, c := range []struct {
		list string
		want []string // nil is an error
	}{
		{"", []string{V16, V2}},
		{"2.1.9", []string{"2.1.9"}},
		{"1.7.35, 2.0.14,2,1.6", []string{"1.7.35", "2.0.14", V2, V16}},
		{"1.5.18", nil},
		{"2.1", nil},
		{"2.1.9,", nil},
		{"../2", nil},
	} {
		got, err := versions(c.list, []string{V16, V2})
		if (err != nil) != (c.want == nil) || !slices.Equal(got, c.want) {
			t.Errorf("%q: %v, %v", c.list, got, err)
		}
	}
	for version, want := range map[string]string{V16: V16, "1.6.36": V16, "1.7.35": "1.7", "2.0.14": V2, V2: V2, "2.10.0": V2} {
		if got := Series(version); got != want {
			t.Errorf("%s is of series %s", version, got)
		}
	}
}
