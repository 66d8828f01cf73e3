package guestimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
)

// kernelTree is what the build keeps of a kernel package, in memory: the
// kernel, its configuration and its modules as packed.
type kernelTree struct {
	Release string // 6.12.95+deb12-cloud-amd64
	Kernel  []byte
	Config  []byte
	Builtin []byte            // modules.builtin
	Modules map[string][]byte // path below /lib/modules/<release>/ -> file
}

// Bounds for a kernel package, several times what a cloud kernel has.
const (
	maxKernelFile = 256 << 20
	maxTreeSize   = 1 << 30
	maxTreeFiles  = 100_000
)

// readKernelPackage reads a .deb through dpkg-deb, which knows every
// compression a package may have.
func readKernelPackage(ctx context.Context, deb string) (*kernelTree, error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("unpacking %s: %w", deb, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("unpacking %s: %w", deb, err)
	}
	tree, err := readKernelTar(out)
	if err != nil {
		// The reader stops early; dpkg-deb must not wait for it for ever.
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("unpacking %s: %w", deb, err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("unpacking %s: dpkg-deb: %w: %s", deb, err, strings.TrimSpace(stderr.String()))
	}
	return tree, nil
}

// readKernelTar keeps the kernel and the modules of a package's file tree.
func readKernelTar(r io.Reader) (*kernelTree, error) {
	t := &kernelTree{Modules: map[string][]byte{}}
	tr := tar.NewReader(r)
	var total int64
	for files := 0; ; files++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if files > maxTreeFiles {
			return nil, fmt.Errorf("more than %d files", maxTreeFiles)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		name = strings.TrimPrefix(name, "usr/") // merged /usr
		if !strings.HasPrefix(name, "boot/") && !strings.HasPrefix(name, "lib/modules/") {
			continue
		}
		if h.Size > maxKernelFile {
			return nil, fmt.Errorf("%s has %d bytes, more than %d", name, h.Size, maxKernelFile)
		}
		if total += h.Size; total > maxTreeSize {
			return nil, fmt.Errorf("more than %d bytes unpacked", int64(maxTreeSize))
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		if err := t.add(name, data); err != nil {
			return nil, err
		}
	}
	// tar ends before the stream does; the rest is padding.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	return t, t.complete()
}

func (t *kernelTree) add(name string, data []byte) error {
	switch {
	case strings.HasPrefix(name, "boot/vmlinuz-"):
		if t.Kernel != nil {
			return errors.New("more than one kernel in the package")
		}
		t.Kernel = data
		t.Release = strings.TrimPrefix(name, "boot/vmlinuz-")
	case strings.HasPrefix(name, "boot/config-"):
		t.Config = data
	case strings.HasPrefix(name, "lib/modules/"):
		_, rel, ok := strings.Cut(strings.TrimPrefix(name, "lib/modules/"), "/")
		if !ok {
			return nil
		}
		if rel == "modules.builtin" {
			t.Builtin = data
		} else if strings.Contains(path.Base(rel), ".ko") {
			t.Modules[rel] = data
		}
	}
	return nil
}

func (t *kernelTree) complete() error {
	switch {
	case t.Kernel == nil:
		return errors.New("no boot/vmlinuz-* in the package")
	case len(t.Modules) == 0:
		return errors.New("no modules in the package")
	case t.Builtin == nil:
		return errors.New("no modules.builtin in the package")
	}
	return nil
}

// requireConfig checks what the image takes for granted of the kernel.
func (t *kernelTree) requireConfig(options ...string) error {
	have := map[string]bool{}
	for _, line := range strings.Split(string(t.Config), "\n") {
		have[strings.TrimSpace(line)] = true
	}
	var missing []string
	for _, o := range options {
		if !have[o] {
			missing = append(missing, o)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("kernel %s lacks %s", t.Release, strings.Join(missing, ", "))
	}
	return nil
}

// fileSHA256 is the digest of a file in hex, and its size.
func fileSHA256(name string) (string, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", 0, fmt.Errorf("reading %s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}

func hexSHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
