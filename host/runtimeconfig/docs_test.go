package runtimeconfig

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocs: what the reference shows can be used, and its table of annotations is that of the code.
func TestDocs(t *testing.T) {
	raw, err := os.ReadFile("../../docs/reference/runtime-config.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(raw), -1)
	if len(blocks) < 3 {
		t.Fatalf("there are %d examples", len(blocks))
	}
	for _, b := range blocks {
		if _, err := load(t, b[1]); err != nil {
			t.Errorf("%s\n%v", b[1], err)
		}
	}
	c := Default()
	for _, a := range c.Supported() {
		if there := strings.Contains(string(raw), "`"+a.Name+"`"); there != a.Enabled {
			t.Errorf("%s: in the table %v, enabled %v", a.Name, there, a.Enabled)
		}
	}
}
