package guestimage

import (
	"os"
	"strings"
	"testing"
)

// TestMakefileBuildsTheSameGuest keeps `make build` from making a guest binary that an image would refuse.
func TestMakefileBuildsTheSameGuest(t *testing.T) {
	text, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "GUEST_FLAGS := ")
	have, _, _ := strings.Cut(rest, "\n\n")
	have = strings.Join(strings.Fields(strings.NewReplacer("\\\n", " ", `"`, "").Replace(have)), " ")
	if want := strings.Join(guestFlags(), " "); have != want {
		t.Errorf("the Makefile builds the guest with\n  %s\nand images with\n  %s", have, want)
	}
}
