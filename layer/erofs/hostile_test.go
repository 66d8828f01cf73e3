package erofs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestRefused(t *testing.T) {
	device := other(tar.TypeChar, "dev", "")
	device.Devmajor = 5000
	owner := file("owner", "x")
	owner.Uid = 1 << 33
	big := file("attr", "x")
	big.PAXRecords = map[string]string{"SCHILY.xattr.user.a": strings.Repeat("v", 70000)}
	many := file("attrs", "x")
	many.PAXRecords = map[string]string{}
	for n := range 5 {
		many.PAXRecords[fmt.Sprintf("SCHILY.xattr.user.%d", n)] = strings.Repeat("v", 60000)
	}
	named := file("attr", "x")
	named.PAXRecords = map[string]string{"SCHILY.xattr.user." + strings.Repeat("n", 256): "v"}
	for name, c := range map[string]struct {
		entries []entry
		want    string
	}{
		"dots":                {[]entry{file("a/../../b", "x")}, `".."`},
		"dots in a link":      {[]entry{file("a", "x"), other(tar.TypeLink, "b", "../a")}, `".."`},
		"long name":           {[]entry{file(strings.Repeat("n", 256), "x")}, "name of 256 bytes"},
		"long path":           {[]entry{file(strings.Repeat("n/", 2048)+"n", "x")}, "path of 4097 bytes"},
		"link to nothing":     {[]entry{other(tar.TypeLink, "b", "a")}, "no such file"},
		"link to directory":   {[]entry{other(tar.TypeDir, "a", ""), other(tar.TypeLink, "b", "a")}, "directory"},
		"link to whiteout":    {[]entry{file(".wh.a", ""), other(tar.TypeLink, "b", "a")}, "no such file"},
		"file as directory":   {[]entry{file("a", "x"), file("a/b", "x")}, "not a directory"},
		"loop":                {[]entry{other(tar.TypeSymlink, "a", "b"), other(tar.TypeSymlink, "b", "a"), file("a/c", "x")}, "too many symbolic links"},
		"empty link":          {[]entry{other(tar.TypeSymlink, "a", "")}, "target of 0 bytes"},
		"long link":           {[]entry{other(tar.TypeSymlink, "a", strings.Repeat("t", 4096))}, "target of 4096 bytes"},
		"long name by a link": {[]entry{other(tar.TypeSymlink, "a", strings.Repeat("t", 256)), file("a/b", "x")}, "name of 256 bytes"},
		"whiteout of nothing": {[]entry{file(".wh.", "")}, "impossible name"},
		"whiteout of dots":    {[]entry{file(".wh...", "")}, "impossible name"},
		"root as file":        {[]entry{file("./", "x")}, "root is not a directory"},
		"device":              {[]entry{device}, "device 5000:0"},
		"owner":               {[]entry{owner}, "user 8589934592"},
		"large attribute":     {[]entry{big}, "extended attribute"},
		"name of attribute":   {[]entry{named}, "extended attribute"},
		"large attributes":    {[]entry{many}, "extended attributes of a file exceeds"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "root as file" { // archive/tar makes a directory of it
				c.entries[0].Name = "."
			}
			_, err := build(t, archive(t, c.entries...), Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	var entries []entry
	for n := range 200 {
		entries = append(entries, file(fmt.Sprintf("d%d/%d", n, n), strings.Repeat("c", 5000)))
	}
	stream := archive(t, entries...)
	for _, o := range []Options{{MaxEntries: 399}, {MaxText: 900}, {MaxSize: 400 * BlockSize}} {
		var limit *LimitError
		if _, err := build(t, stream, o); !errors.As(err, &limit) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := build(t, stream, Options{MaxEntries: 400, MaxText: 2000, MaxSize: 420 * BlockSize}); err != nil {
		t.Error(err)
	}
	// Links whose targets cost much to follow.
	entries = []entry{other(tar.TypeDir, "d", "")}
	for n := range 39 {
		entries = append(entries, other(tar.TypeSymlink, fmt.Sprintf("l%d", n), strings.Repeat("./", 2000)+fmt.Sprintf("l%d", n+1)))
	}
	entries = append(entries, other(tar.TypeSymlink, "l39", "d"))
	for n := range 1000 {
		entries = append(entries, file(fmt.Sprintf("l0/%d", n), ""))
	}
	var limit *LimitError
	if _, err := build(t, archive(t, entries...), Options{}); !errors.As(err, &limit) {
		t.Errorf("links that cost much: %v", err)
	}
	// A path that gets deeper by each link.
	entries = nil
	for n := range 4 {
		below := strings.Repeat("a/", 1000)
		if n > 0 {
			below = fmt.Sprintf("l%d/", n-1) + below
		}
		entries = append(entries, file(below+"f", ""), other(tar.TypeSymlink, fmt.Sprintf("l%d", n), strings.TrimSuffix(below, "/")))
	}
	if _, err := build(t, archive(t, entries...), Options{}); !errors.As(err, &limit) || limit.What != "depth of directories" {
		t.Errorf("a deep tree: %v", err)
	}
}

func TestBrokenStreams(t *testing.T) {
	stream := archive(t, file("a", strings.Repeat("x", 100000)), file("b", "y"))
	for _, n := range []int{1, 511, 600, 50000, 512 + 100352 + 100, 512 + 100352 + 512} {
		if _, err := build(t, stream[:n], Options{}); err == nil {
			t.Errorf("the first %d of %d bytes were taken", n, len(stream))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FromTar(ctx, bytes.NewReader(stream), &memory{t: t}, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	broken := errors.New("broken")
	if _, err := FromTar(t.Context(), io.MultiReader(bytes.NewReader(stream[:5000]), errReader{broken}), &memory{t: t}, Options{}); !errors.Is(err, broken) {
		t.Errorf("a broken reader: %v", err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// FuzzFromTar wants an error or an image that a reader of its own finds whole, and the same one again.
func FuzzFromTar(f *testing.F) {
	attrs := file("a/b", "content")
	attrs.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y"}
	f.Add(archive(f, attrs, other(tar.TypeLink, "c", "a/b"), other(tar.TypeSymlink, "s", "a"), file("s/d", "e"), file("a/.wh..wh..opq", ""), file(".wh.z", "")))
	f.Add(append(sparse(f, "holes", 200000, 70000, "data"), archive(f, file("x/y/z", "1"), file("x", "2"), other(tar.TypeDir, "x", ""), other(tar.TypeFifo, "p", ""))...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		o := Options{MaxSize: 4 << 20, MaxEntries: 1000, MaxText: 1 << 20}
		image, err := build(t, stream, o)
		if err != nil {
			return
		}
		checkImage(t, image)
		if again, err := build(t, stream, o); err != nil || !bytes.Equal(again, image) {
			t.Error("the second image is not the first")
		}
	})
}
