package image

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// libraries finds the shared libraries and dynamic loaders that ELF files need, as path in the image -> file here.
// Files that are not ELF need nothing.
func libraries(files []string) (map[string]string, error) {
	search := libraryPath()
	out := map[string]string{}
	for queue := files; len(queue) > 0; queue = queue[1:] {
		interp, needed, err := dependencies(queue[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", queue[0], err)
		}
		if interp != "" && out[interp] == "" {
			real, err := filepath.EvalSymlinks(interp)
			if err != nil {
				return nil, fmt.Errorf("%s: dynamic loader: %w", queue[0], err)
			}
			out[interp] = real
			queue = append(queue, real)
		}
		for _, lib := range needed {
			path, err := findLibrary(lib, search)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", queue[0], err)
			}
			if out[path] != "" {
				continue
			}
			real, err := filepath.EvalSymlinks(path)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", queue[0], err)
			}
			out[path] = real
			queue = append(queue, real)
		}
	}
	return out, nil
}

func dependencies(path string) (interp string, needed []string, err error) {
	f, err := elf.Open(path)
	var format *elf.FormatError
	if errors.As(err, &format) {
		return "", nil, nil
	}
	if err != nil {
		if info, serr := os.Stat(path); serr == nil && info.Size() < 64 {
			return "", nil, nil // too short to be ELF
		}
		return "", nil, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 4096 {
			buf := make([]byte, p.Filesz)
			if _, err := p.ReadAt(buf, 0); err != nil {
				return "", nil, err
			}
			interp = strings.TrimRight(string(buf), "\x00")
		}
	}
	needed, err = f.ImportedLibraries()
	return interp, needed, err
}

// libraryPath is where the dynamic loader looks: what /etc/ld.so.conf lists, and the usual directories.
func libraryPath() []string {
	var out []string
	files, _ := filepath.Glob("/etc/ld.so.conf.d/*.conf") // a malformed pattern is the only error
	for _, name := range append(files, "/etc/ld.so.conf") {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			if line := strings.TrimSpace(s.Text()); strings.HasPrefix(line, "/") {
				out = append(out, line)
			}
		}
		f.Close()
	}
	return append(out, "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
}

func findLibrary(name string, search []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range search {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("shared library %s is not in %s", name, strings.Join(search, ", "))
}
