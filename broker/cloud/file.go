package cloud

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

const (
	// MaxFile bounds a file with credentials and an answer of a metadata service, in bytes.
	MaxFile = 64 << 10
)

// ReadFile reads a file with credentials; its errors never hold what is in it. It is read at each use, so that one that
// was renewed counts at once.
func ReadFile(key, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %s is not a regular file", key, path)
	}
	if info.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("%s: %s has mode %04o: others could replace the credentials", key, path, info.Mode().Perm())
	}
	raw, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	if len(raw) > MaxFile {
		return nil, fmt.Errorf("%s: %s has more than %d bytes", key, path, MaxFile)
	}
	return raw, nil
}

var tokenText = regexp.MustCompile(`\A[\x21-\x7e]+\z`)

// ReadToken reads a file that holds one token, which may stand in a header.
func ReadToken(key, path string) (string, error) {
	raw, err := ReadFile(key, path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(raw))
	if !tokenText.MatchString(token) {
		return "", fmt.Errorf("%s: %s holds %d bytes that are not a token", key, path, len(raw))
	}
	return token, nil
}

// TokenText tells whether a token that was sent may stand in a header.
func TokenText(token string) bool { return len(token) <= MaxFile && tokenText.MatchString(token) }
