package network

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/wire/agent"
)

// Bounds of the resolver configuration, which are those of the guest.
const (
	maxDNSFile  = 64 << 10
	maxDNSLines = 64
	maxDNSLine  = 4096
)

const resolvConf = "/etc/resolv.conf"

// DNS returns the lines of the file that the pod's specification mounts as resolver configuration, for CreateSandboxRequest.Dns, without
// comments and empty lines. A pod without such a mount has none, which is no error.
func DNS(spec *agent.Spec) ([]string, error) {
	source := ""
	for _, m := range spec.GetMounts() {
		if m.GetDestination() == resolvConf {
			source = m.GetSource() // the last one covers those before
		}
	}
	if source == "" {
		return nil, nil
	}
	lines, err := readDNS(source)
	if err != nil {
		return nil, fmt.Errorf("reading the pod's resolver configuration: %w", err)
	}
	return lines, nil
}

func readDNS(path string) ([]string, error) {
	// Not blocking, so that a pipe with this name is an error and not a wait.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxDNSFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxDNSFile {
		return nil, fmt.Errorf("%s: %w: more than %d bytes", path, ErrTooMany, maxDNSFile)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			continue
		case len(line) > maxDNSLine || strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }):
			return nil, fmt.Errorf("%s has the line %.80q: expected up to %d bytes without control characters", path, line, maxDNSLine)
		}
		if out = append(out, line); len(out) > maxDNSLines {
			return nil, fmt.Errorf("%s: %w lines: more than %d", path, ErrTooMany, maxDNSLines)
		}
	}
	return out, nil
}
