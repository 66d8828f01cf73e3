package agent

import (
	"regexp"
	"testing"
)

func TestImageVolumeNames(t *testing.T) {
	const id = "c0ffee"
	for n, destination := range map[int]string{0: "/var/lib/postgresql/data", 7: "/data/", 123456: "/a b"} {
		name := ImageVolume(id, n, destination)
		if !IsImageVolume(id, name) || !ReservedForImageVolume(name) {
			t.Errorf("%s is not known", name)
		}
		// What policies of Kata's generator expect.
		if !regexp.MustCompile(`^` + id + `-[a-z0-9]{16}-(data|a b)$`).MatchString(name) {
			t.Errorf("%s is not as the names of other mounts", name)
		}
	}
	for _, name := range []string{id + "-0123456789abcdef-data", "other-imagevolume00000-data", id + "-imagevolume00000", id + "-imagevolume0000x-data",
		id + "-imagevolume00000-data/x", id + "-0123456789abcdef-x-imagevolume00000-data", ""} {
		if IsImageVolume(id, name) {
			t.Errorf("%s is taken for an image volume", name)
		}
	}
	if ReservedForImageVolume(id + "-0123456789abcdef-data") {
		t.Error("nothing can be copied")
	}
}
