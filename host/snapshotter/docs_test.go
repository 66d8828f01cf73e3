package snapshotter

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestDocs: the reference and the example have each setting.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/snapshotter.md")
	if err != nil {
		t.Fatal(err)
	}
	config := reflect.TypeFor[Config]()
	for i := range config.NumField() {
		key := config.Field(i).Tag.Get("toml")
		if !strings.Contains(string(text), "| `"+key+"` |") {
			t.Errorf("the reference does not have %s", key)
		}
		if !strings.Contains(string(example), "\n"+key+" = ") {
			t.Errorf("the example does not have %s", key)
		}
	}
}
