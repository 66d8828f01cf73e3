package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister/cloister/wire/agent"
)

// maxFile bounds one copied file; the directory is in memory.
const maxFile = 1 << 30

// CopyFile puts a file, directory or symlink of the pod below its shared directory. Files arrive in pieces and appear
// under their name when complete. However paths and symlinks look, nothing outside the directory is touched.
func (a *Agent) CopyFile(_ context.Context, req *agent.CopyFileRequest) (*emptypb.Empty, error) {
	base := filepath.Join(a.cfg.Layout.Root, "shared/containers")
	rel, ok := strings.CutPrefix(req.GetPath(), base+"/")
	if !ok || !filepath.IsLocal(rel) || path.Clean(rel) != strings.TrimSuffix(rel, "/") || rel == "." {
		return nil, invalid("path %.120q is not below %s", req.GetPath(), base)
	}
	if name, _, _ := strings.Cut(rel, "/"); agent.ReservedForImageVolume(name) {
		// It would not be seen, and a policy that knows of it would take it for what a container finds there.
		return nil, invalid("%.160q is a directory of the image, into which nothing is copied", name)
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, fmt.Errorf("making %s: %w", base, err)
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", base, err)
	}
	defer root.Close()
	// One at a time: what two requests do to the same names must not mix.
	a.copying.Lock()
	defer a.copying.Unlock()
	if err := copyBelow(root, path.Clean(rel), req); err != nil {
		return nil, fmt.Errorf("copying to %s: %w", req.GetPath(), err)
	}
	return &emptypb.Empty{}, nil
}

// copyBelow copies a file into its volume, which is what the first part of the path names. No link leads from one volume into another:
// what is there may have been bound by the policy, and a container may use it.
func copyBelow(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	volume, rest, ok := strings.Cut(rel, "/")
	if !ok {
		return copyFile(root, rel, req)
	}
	if err := makeParents(root, volume+"/x", req); err != nil {
		return err
	}
	if info, err := root.Lstat(volume); err != nil || !info.IsDir() {
		return errors.Join(err, invalid("%.120q is not a directory", volume))
	}
	dir, err := root.OpenRoot(volume)
	if err != nil {
		return err
	}
	defer dir.Close()
	return copyFile(dir, rest, req)
}

func copyFile(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	size, off, n := req.GetFileSize(), req.GetOffset(), int64(len(req.GetData()))
	if req.GetFileMode()&unix.S_IFMT == unix.S_IFLNK && off == 0 && size == 0 {
		size = n // some hosts give the size of regular files only; copySymlink has its own limit
	}
	if size < 0 || size > maxFile || off < 0 || off > size || n > size-off {
		return invalid("%d bytes at offset %d do not fit into a file of %d (limit %d)", n, off, size, int64(maxFile))
	}
	if req.GetUid() < 0 || req.GetGid() < 0 {
		return invalid("owner %d:%d", req.GetUid(), req.GetGid())
	}
	if err := makeParents(root, rel, req); err != nil {
		return err
	}
	switch req.GetFileMode() & unix.S_IFMT {
	case unix.S_IFDIR:
		return copyDir(root, rel, req)
	case unix.S_IFLNK:
		return copySymlink(root, rel, req)
	case unix.S_IFREG, 0:
		return copyRegular(root, rel, req)
	}
	return invalid("file type %#o", req.GetFileMode()&unix.S_IFMT)
}

// makeParents makes the directories above rel. The mode of the request may lack the bits that make a directory usable,
// which would only hurt the pod's own users.
func makeParents(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	parent := path.Dir(rel)
	if parent == "." {
		return nil
	}
	if _, err := root.Stat(parent); err == nil {
		return nil
	}
	mode := fs.FileMode(req.GetDirMode() & 0o777)
	if mode == 0 {
		mode = 0o750
	}
	if err := root.MkdirAll(parent, mode); err != nil {
		return err
	}
	return root.Lchown(parent, int(req.GetUid()), int(req.GetGid()))
}

func copyDir(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	info, err := root.Lstat(rel)
	switch {
	case err == nil && !info.IsDir():
		if err := root.Remove(rel); err != nil {
			return err
		}
		fallthrough
	case errors.Is(err, fs.ErrNotExist):
		if err := root.Mkdir(rel, 0o700); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	return setOwner(root, rel, req)
}

// copySymlink makes a link; where it leads is decided by those who follow it, and they are confined.
func copySymlink(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	target := string(req.GetData())
	if target == "" || len(target) >= unix.PathMax || strings.ContainsRune(target, 0) {
		return invalid("symlink target %.120q", target)
	}
	// A link that leads to another version of a volume is exchanged at once: its readers never find none.
	tmp := temporaryName(rel)
	if err := removeOne(root, tmp); err != nil {
		return err
	}
	if err := root.Symlink(target, tmp); err != nil {
		return err
	}
	err := root.Lchown(tmp, int(req.GetUid()), int(req.GetGid()))
	if err == nil {
		err = replace(root, tmp, rel)
	}
	if err != nil {
		return errors.Join(err, removeOne(root, tmp))
	}
	return nil
}

// temporaryName is where the pieces of a file wait. No two files share it, and no file of a pod is called like that.
func temporaryName(rel string) string {
	sum := sha256.Sum256([]byte(rel))
	return path.Join(path.Dir(rel), ".cloister-copy-"+hex.EncodeToString(sum[:]))
}

func copyRegular(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	tmp := temporaryName(rel)
	if req.GetOffset() == 0 {
		if err := removeOne(root, tmp); err != nil {
			return err
		}
	}
	whole, err := writePiece(root, tmp, req)
	if err == nil && whole {
		err = complete(root, tmp, rel, req)
	}
	if err != nil { // the file that was there before stays
		return errors.Join(err, removeOne(root, tmp))
	}
	return nil
}

// writePiece adds a piece to a file that waits, and says whether it is whole.
func writePiece(root *os.Root, tmp string, req *agent.CopyFileRequest) (whole bool, err error) {
	flags := os.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK
	if req.GetOffset() == 0 {
		flags |= os.O_CREATE
	}
	f, err := root.OpenFile(tmp, flags, 0o600)
	if err != nil {
		return false, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = invalid("%s is not a regular file", tmp)
	}
	if err == nil && req.GetOffset() > info.Size() {
		err = invalid("a piece at offset %d follows %d bytes", req.GetOffset(), info.Size())
	}
	if err == nil {
		_, err = f.WriteAt(req.GetData(), req.GetOffset())
	}
	var now fs.FileInfo
	if err == nil {
		now, err = f.Stat()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	if got := now.Size(); got > req.GetFileSize() {
		return false, invalid("the file has %d bytes, %d were announced", got, req.GetFileSize())
	}
	return now.Size() == req.GetFileSize(), nil
}

// complete puts a whole file in its place, in one step unless a directory is there.
func complete(root *os.Root, tmp, rel string, req *agent.CopyFileRequest) error {
	if err := setOwner(root, tmp, req); err != nil {
		return err
	}
	return replace(root, tmp, rel)
}

// replace renames tmp, which is a file or a link. What is there is replaced, a directory with all that is in it.
func replace(root *os.Root, tmp, rel string) error {
	if info, err := root.Lstat(rel); err == nil && info.IsDir() {
		if err := removeOne(root, rel); err != nil {
			return err
		}
	}
	return root.Rename(tmp, rel)
}

// setOwner sets owner and then mode, because a change of owner clears mode bits.
func setOwner(root *os.Root, rel string, req *agent.CopyFileRequest) error {
	if err := root.Lchown(rel, int(req.GetUid()), int(req.GetGid())); err != nil {
		return err
	}
	m := req.GetFileMode()
	mode := fs.FileMode(m & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return root.Chmod(rel, mode)
}
