package headerfile

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	h, err := Parse([]byte("# for the collector\n\nx-token: a:b \nOther:\n"))
	if err != nil || len(h) != 2 || h["X-Token"] != "a:b" || h["Other"] != "" {
		t.Errorf("%v, %v", h, err)
	}
	for _, bad := range []string{"s3cret", ": s3cret", "s3 cret: x", strings.Repeat("s3cret\n", Limit)} {
		if _, err := Parse([]byte(bad)); err == nil || strings.Contains(err.Error(), "s3") {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}
