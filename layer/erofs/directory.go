package erofs

import (
	"encoding/binary"
	"maps"
	"slices"
)

// Types of files in directories (EROFS_FT_*, as elsewhere in Linux).
func (i *inode) dirType() byte {
	switch i.mode & typeMask {
	case typeRegular:
		return 1
	case typeDir:
		return 2
	case typeChar:
		return 3
	case typeBlock:
		return 4
	case typeFifo:
		return 5
	}
	return 7 // symbolic link
}

// names returns the sorted names of a directory with "." and "..".
func (i *inode) names() []string {
	names := make([]string, 0, len(i.children)+2)
	names = append(names, ".", "..")
	names = slices.AppendSeq(names, maps.Keys(i.children))
	slices.Sort(names)
	return names
}

// dirBlocks calls do with the names of each block of a directory and how many bytes of it they fill. An entry has a fixed part at
// the start of the block and its name behind all of these.
func dirBlocks(names []string, do func(names []string, used int)) {
	begin, used := 0, 0
	for n, name := range names {
		need := direntSize + len(name)
		if used+need > BlockSize {
			do(names[begin:n], used)
			begin, used = n, 0
		}
		used += need
	}
	do(names[begin:], used)
}

func dirSize(i *inode) int64 {
	var blocks, last int
	dirBlocks(i.names(), func(_ []string, used int) { blocks, last = blocks+1, used })
	return int64((blocks-1)*BlockSize + last)
}

// appendDir appends one block of a directory, without what fills it up.
func (i *inode) appendDir(b []byte, names []string) []byte {
	offset := len(names) * direntSize
	for _, name := range names {
		node := i.children[name]
		switch name {
		case ".":
			node = i
		case "..":
			node = i.parent
		}
		b = binary.LittleEndian.AppendUint64(b, uint64(node.pos/inodeUnit))
		b = binary.LittleEndian.AppendUint16(b, uint16(offset))
		b = append(b, node.dirType(), 0)
		offset += len(name)
	}
	for _, name := range names {
		b = append(b, name...)
	}
	return b
}

// each calls do with the blocks of a directory or link, in order, the last one not filled up.
func (i *inode) each(do func(number int64, block []byte) error) error {
	if i.is(typeSymlink) {
		return do(0, []byte(i.target))
	}
	if !i.is(typeDir) {
		return nil
	}
	var number int64
	var err error
	var b []byte
	dirBlocks(i.names(), func(names []string, _ int) {
		if err == nil {
			b = i.appendDir(b[:0], names)
			err = do(number, b)
		}
		number++
	})
	return err
}

// tail writes what follows the inode.
func (i *inode) tail(w *writer) error {
	if !i.inline {
		return nil
	}
	return i.each(func(number int64, block []byte) error {
		if number < i.outer() {
			return nil
		}
		_, err := w.Write(block)
		return err
	})
}

// blocks writes what does not follow the inode.
func (i *inode) blocks(w *writer) error {
	if i.outer() == 0 || !i.is(typeDir) && !i.is(typeSymlink) {
		return nil
	}
	return i.each(func(number int64, block []byte) error {
		if number >= i.outer() {
			return nil
		}
		if _, err := w.Write(block); err != nil {
			return err
		}
		return w.align()
	})
}
