package layer

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// mkfsErofs is the program of the recipe Containerd, and the first of its versions that has all the options.
const (
	mkfsErofs   = "mkfs.erofs"
	mkfsMajor   = 1
	mkfsMinor   = 8
	mkfsPatch   = 2
	mkfsHint    = "hint: install erofs-utils 1.8.2 or later (Debian 13 has 1.8.6), or use the recipe " + string(Cloister)
	maxMkfsText = 4096 // bytes of what the program says
)

var (
	mkfsVersion = regexp.MustCompile(`^mkfs\.erofs (?:\(erofs-utils\) )?v?([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?`)
	blobDigest  = regexp.MustCompile(`^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-f0-9]{2,256}$`)
)

// checkMkfs reports whether the program is there and new enough.
func checkMkfs(ctx context.Context) error {
	path, err := exec.LookPath(mkfsErofs)
	if err != nil {
		return fmt.Errorf("recipe %s needs the program mkfs.erofs: %w\n%s", Containerd, err, mkfsHint)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	// Old versions do not know the option, and say their version nevertheless.
	out, _ := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	m := mkfsVersion.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("recipe %s: cannot tell the version of %s, which says %.100q\n%s", Containerd, path, out, mkfsHint)
	}
	var v [3]int
	for i := range v {
		v[i], _ = strconv.Atoi(string(m[i+1])) // digits, or nothing
	}
	for i, least := range [3]int{mkfsMajor, mkfsMinor, mkfsPatch} {
		if v[i] > least {
			break
		}
		if v[i] < least {
			return fmt.Errorf("recipe %s: %s is version %d.%d.%d, which lacks options\n%s", Containerd, path, v[0], v[1], v[2], mkfsHint)
		}
	}
	return nil
}

// blobUUID is the UUID that containerd gives the file system of a blob: version 5 of a name in the namespace of URLs (RFC 9562, 5.5).
func blobUUID(descriptor string) string {
	h := sha1.New()
	h.Write([]byte{0x6b, 0xa7, 0xb8, 0x11, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8})
	io.WriteString(h, "erofs:blobs/"+descriptor)
	u := h.Sum(nil)[:16]
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// mkfs runs mkfs.erofs as containerd's differ does with Kata Containers' options and returns the file, which is in dir.
func mkfs(ctx context.Context, tar io.Reader, dir string, o Options) (string, error) {
	if !blobDigest.MatchString(o.Descriptor) {
		return "", fmt.Errorf("recipe %s needs the digest of the compressed blob, got %q\nhint: set Options.Descriptor", Containerd, o.Descriptor)
	}
	if err := checkMkfs(ctx); err != nil {
		return "", err
	}
	path := filepath.Join(dir, "layer.erofs")
	cmd := exec.CommandContext(ctx, mkfsErofs, "--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-b4096", "-T0", "--mkfs-time", "--sort=none",
		"-U", blobUUID(o.Descriptor), path)
	var said tail
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.WaitDelay = 10 * time.Second // for what it says, once it has ended
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", fmt.Errorf("running mkfs.erofs: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("running mkfs.erofs: %w", err)
	}
	// The program has no limit of its own, and its temporary file has a large size from the start, so that the kernel's limit
	// is of no use. It does not expand holes, so what goes in bounds what comes out.
	source := &remembering{r: io.LimitReader(tar, o.MaxSize+1)}
	n, _ := io.Copy(in, source) // the program stops reading at the end of the archive, so only the reader's errors count
	if source.err == nil && n > o.MaxSize {
		source.err = &LimitError{What: "size of the layer's archive", Limit: o.MaxSize}
	}
	if source.err != nil {
		cmd.Process.Kill()
	}
	in.Close()
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case source.err != nil:
		return "", fmt.Errorf("reading the layer for mkfs.erofs: %w", source.err)
	case err != nil:
		return "", fmt.Errorf("running mkfs.erofs: %w: %s", err, strings.TrimSpace(said.String()))
	}
	return path, nil
}

// remembering keeps the error of a reader apart from that of a writer.
type remembering struct {
	r   io.Reader
	err error
}

func (r *remembering) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// tail keeps the end of what a program says.
type tail struct{ bytes.Buffer }

func (t *tail) Write(b []byte) (int, error) {
	t.Buffer.Write(b)
	if extra := t.Len() - maxMkfsText; extra > 0 {
		t.Next(extra)
	}
	return len(b), nil
}
