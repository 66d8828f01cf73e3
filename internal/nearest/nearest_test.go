package nearest

import (
	"strings"
	"testing"
)

func TestTo(t *testing.T) {
	names := []string{"image", "images", "command"}
	for _, c := range []struct {
		word     string
		mistakes int
		want     string
	}{
		{"imge", 2, "image"}, {"imagess", 1, "images"}, {"comand", 0, ""}, {"command", 0, "command"}, {"", 2, ""},
		{strings.Repeat("x", 1<<20), 2, ""}, {strings.Repeat("x", 1<<20), 1 << 21, ""},
	} {
		if got := To(c.word, names, c.mistakes); got != c.want {
			t.Errorf("%.20q with %d mistakes is %q, want %q", c.word, c.mistakes, got, c.want)
		}
	}
}
