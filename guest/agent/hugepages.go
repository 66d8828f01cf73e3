package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cloister/cloister/wire/agent"
)

// hugePagesDir is where the kernel counts huge pages.
const hugePagesDir = "/sys/kernel/mm/hugepages"

// hugeStorage is a file system of huge pages, which the kernel is asked for first. It lives as long as the pod.
func (a *Agent) hugeStorage(s *agent.Storage) (func() error, error) {
	page, size, err := parseHuge(s.GetOptions())
	if err != nil {
		return nil, err
	}
	group, err := parseGroup(s)
	if err != nil {
		return nil, err
	}
	if err := reserveHuge(hugePagesDir, page, size); err != nil {
		return nil, err
	}
	at, err := a.openVolume(s.GetMountPoint(), "sandbox")
	if err != nil {
		return nil, err
	}
	defer at.Close()
	opts, err := parseMount([]string{"nosuid"}, nil)
	if err != nil {
		return nil, err
	}
	opts.values = [][2]string{{"pagesize", strconv.FormatUint(page, 10)}, {"size", strconv.FormatUint(size, 10)}}
	mount, err := openFS("hugetlbfs", "nodev", opts)
	if err != nil {
		return nil, err
	}
	defer mount.Close()
	root, err := openRoot(mount)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return nil, errors.Join(group.apply(root), attach(mount, at))
}

// parseHuge reads the sizes, in bytes, of a page and of the volume.
func parseHuge(options []string) (page, size uint64, err error) {
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		dst := &size
		switch key {
		case "pagesize":
			dst = &page
		case "size":
		case "fsgid", "nodev", "nosuid", "rw", "":
			continue
		default:
			return 0, 0, invalid("option %.60q", o)
		}
		if *dst, err = strconv.ParseUint(value, 10, 48); err != nil {
			return 0, 0, invalid("option %.60q, expected a number of bytes", o)
		}
	}
	if page < 4096 || page&(page-1) != 0 || size < page {
		return 0, 0, invalid("huge pages of %d bytes, %d bytes in all", page, size)
	}
	return page, size / page * page, nil
}

// reserveHuge makes the kernel keep enough huge pages, beside those that others have asked for.
func reserveHuge(dir string, page, size uint64) error {
	file := filepath.Join(dir, fmt.Sprintf("hugepages-%dkB", page>>10), "nr_hugepages")
	have, err := readCount(file)
	if err != nil {
		return err
	}
	want := have + size/page
	if err := os.WriteFile(file, []byte(strconv.FormatUint(want, 10)), 0); err != nil {
		return fmt.Errorf("reserving huge pages: %w", err)
	}
	got, err := readCount(file)
	if err != nil {
		return err
	}
	if got < want {
		err := os.WriteFile(file, []byte(strconv.FormatUint(have, 10)), 0)
		return errors.Join(fmt.Errorf("reserving %d huge pages of %d bytes: the memory has room for %d", size/page, page, got-min(got, have)), err)
	}
	return nil
}

func readCount(file string) (uint64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("counting huge pages: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 63)
	if err != nil {
		return 0, fmt.Errorf("counting huge pages: %w", err)
	}
	return n, nil
}
