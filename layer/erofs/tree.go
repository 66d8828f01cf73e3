package erofs

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Types of files in the mode and in directories.
const (
	typeMask    = 0o170000
	typeFifo    = 0o010000
	typeChar    = 0o020000
	typeDir     = 0o040000
	typeBlock   = 0o060000
	typeRegular = 0o100000
	typeSymlink = 0o120000
)

// inode is a file, directory or other thing of the file system.
type inode struct {
	mode     uint16
	uid, gid uint32
	rdev     uint32
	nlink    uint32
	nsec     uint32
	mtime    int64
	size     int64
	xattrs   []xattr

	start     int64 // first block of the data; nullBlock if there is none
	chunkBits uint8 // of a file with holes
	holes     []run // of a file with holes, in chunks

	target   string            // of a symbolic link
	children map[string]*inode // of a directory; nil for anything else
	parent   *inode            // of a directory; the root's is itself
	depth    int
	opaque   bool // hides the directory of the layers below
	whiteout bool // hides a file of the layers below
	hides    bool // a directory with whiteouts in it

	number uint32 // from 1
	pos    int64  // from the start of the metadata, in bytes; -1 until it has a place
	inline bool   // the last part of the data follows the inode
}

// run is a number of chunks.
type run struct{ first, n uint32 }

func (i *inode) is(kind uint16) bool { return i.mode&typeMask == kind }

// tree is the file system in the making.
type tree struct {
	root    *inode
	limits  Options
	entries int64
	text    int64
	bytes   int64 // of files, holes included
	steps   int64 // components of followed symbolic links
	buf     []byte
	chunked bool // there is a file with holes
}

func newTree(o Options) *tree {
	t := &tree{limits: o}
	t.root = t.newDir(nil)
	t.root.parent = t.root
	return t
}

func (t *tree) newDir(parent *inode) *inode {
	d := &inode{mode: typeDir | 0o755, nlink: 2, start: nullBlock, pos: -1, children: map[string]*inode{}, parent: parent}
	if parent != nil {
		d.depth = parent.depth + 1
	}
	return d
}

// count is called for each entry and each directory that is made for one.
func (t *tree) count(text int) error {
	if t.entries++; t.entries > t.limits.MaxEntries {
		return &LimitError{What: "number of entries of the layer", Limit: t.limits.MaxEntries}
	}
	return t.countText(text)
}

func (t *tree) countText(text int) error {
	if t.text += int64(text); t.text > t.limits.MaxText {
		return &LimitError{What: "size of the layer's names, link targets and extended attributes", Limit: t.limits.MaxText}
	}
	return nil
}

// clean returns the path of an entry relative to the root, "" for the root itself.
func clean(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("path of %d bytes, want at most %d", len(name), maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("path with a zero byte")
	}
	parts := make([]string, 0, 16)
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			return "", errors.New(`path with ".."`)
		default:
			if len(part) > maxName {
				return "", fmt.Errorf("name of %d bytes, want at most %d", len(part), maxName)
			}
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/"), nil
}

// split parts a clean path into the directory and the last name.
func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// dir finds a directory by its clean path. Symbolic links of the layer are followed and never lead out of it. What is missing is
// made if wanted, else nil is returned.
func (t *tree) dir(name string, make bool) (*inode, error) {
	at, hops := t.root, 0
	for name != "" {
		part, rest, _ := strings.Cut(name, "/")
		name = rest
		if hops > 0 {
			if t.steps++; t.steps > maxSteps {
				return nil, &LimitError{What: "work to follow the layer's symbolic links", Limit: maxSteps}
			}
		}
		switch part {
		case "", ".":
			continue
		case "..": // of a link's target
			at = at.parent
			continue
		}
		child := at.children[part]
		switch {
		case child != nil && child.is(typeDir):
			at = child
		case child != nil && child.is(typeSymlink):
			if hops++; hops > maxHops {
				return nil, errors.New("too many symbolic links in the path")
			}
			if strings.HasPrefix(child.target, "/") {
				at = t.root
			}
			if name == "" {
				name = child.target
			} else {
				name = child.target + "/" + name
			}
		case child != nil && !child.whiteout:
			return nil, fmt.Errorf("%q in the path is not a directory", part)
		case !make:
			return nil, nil
		default:
			if err := t.count(len(part)); err != nil {
				return nil, err
			}
			made := t.newDir(at)
			if err := t.put(at, part, made); err != nil {
				return nil, err
			}
			at = made
		}
	}
	return at, nil
}

// put gives a new inode its name. What has the name goes; a directory in the place of a whiteout is opaque, since a whiteout hides
// what the layers below have, also for what this layer adds (OCI image specification, layer, "Whiteouts").
func (t *tree) put(dir *inode, base string, node *inode) error {
	if len(base) > maxName { // of a link's target
		return fmt.Errorf("name of %d bytes, want at most %d", len(base), maxName)
	}
	old := dir.children[base]
	if old != nil && old.whiteout && node.is(typeDir) {
		node.opaque = true
	}
	t.drop(dir, base)
	if node.is(typeDir) {
		if node.depth > maxDepth {
			return &LimitError{What: "depth of directories", Limit: maxDepth}
		}
		dir.nlink++
	}
	dir.children[strings.Clone(base)] = node // it may be a part of a large PAX header
	return nil
}

// drop removes a name and, if it is a directory, all that is in it.
func (t *tree) drop(dir *inode, base string) {
	old := dir.children[base]
	if old == nil {
		return
	}
	delete(dir.children, base)
	if !old.is(typeDir) {
		old.nlink--
		return
	}
	dir.nlink--
	for stack := []*inode{old}; len(stack) > 0; {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, child := range d.children {
			if child.is(typeDir) {
				stack = append(stack, child)
			} else {
				child.nlink--
			}
		}
	}
}

// hide makes a whiteout. Whiteouts hide only what the layers below have.
func (t *tree) hide(dir *inode, base string) error {
	if old := dir.children[base]; old != nil {
		if old.is(typeDir) {
			old.opaque = true
		}
		return nil
	}
	return t.put(dir, base, &inode{mode: typeChar, nlink: 1, start: nullBlock, pos: -1, whiteout: true})
}

func (i *inode) setTime(at time.Time) {
	i.mtime, i.nsec = at.Unix(), uint32(at.Nanosecond())
}
