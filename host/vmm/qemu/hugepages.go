package qemu

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// hugepages is where the host's huge pages are files.
const hugepages = "/dev/hugepages"

// hugetlbMagic is HUGETLBFS_MAGIC of the kernel's linux/magic.h.
const hugetlbMagic = 0x958458f6

// checkHugepages says whether a directory has the memory of a VM free in huge pages. QEMU's own message names only what it could not map.
func checkHugepages(dir string, mib int) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("memory from huge pages: looking at %s: %w (hint: mount it: mount -t hugetlbfs none %s)", dir, err, dir)
	}
	if uint32(s.Type) != hugetlbMagic {
		return fmt.Errorf("memory from huge pages: %s is another file system (hint: mount -t hugetlbfs none %s)", dir, dir)
	}
	page := int64(s.Bsize)
	want := int64(mib) << 20
	if page > 0 && want%page != 0 {
		return fmt.Errorf("memory from huge pages: %d MiB are not a multiple of the page's %d MiB (hint: set sandbox.memory_block_mib and "+
			"sandbox.static_sizing to fit)", mib, page>>20)
	}
	if free := int64(s.Bfree) * page; free < want {
		return fmt.Errorf("memory from huge pages: %d MiB are needed, %d MiB of %d MiB are free (hint: sysctl vm.nr_hugepages=NUMBER reserves "+
			"pages of %d MiB)", mib, free>>20, int64(s.Blocks)*page>>20, page>>20)
	}
	return nil
}
