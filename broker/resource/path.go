package resource

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// ErrPath is returned for a resource path that no resource can have.
var ErrPath = errors.New("a resource path is <repository>/<type>/<tag> of letters, digits, '_', '-' and inner '.'")

const maxSegment = 256

var segment = regexp.MustCompile(`\A[A-Za-z0-9_-][A-Za-z0-9_.-]*\z`)

// Path is a checked resource path.
type Path struct{ repository, kind, tag string }

// String is the path with slashes.
func (p Path) String() string { return p.repository + "/" + p.kind + "/" + p.tag }

// Segments is the path as the resource policy sees it.
func (p Path) Segments() []string { return []string{p.repository, p.kind, p.tag} }

// Repository is the namespace that a resource belongs to.
func (p Path) Repository() string { return p.repository }

// ParsePath checks a path. The error wraps ErrPath.
func ParsePath(segments []string) (Path, error) {
	if len(segments) != 3 {
		return Path{}, fmt.Errorf("path has %d parts: %w", len(segments), ErrPath)
	}
	if err := checkSegments(segments); err != nil {
		return Path{}, err
	}
	return Path{segments[0], segments[1], segments[2]}, nil
}

func checkSegments(segments []string) error {
	for _, s := range segments {
		if len(s) > maxSegment || !segment.MatchString(s) {
			return fmt.Errorf("path part %.64q: %w", s, ErrPath)
		}
	}
	return nil
}

// SplitPath cuts a URL path into segments without cleaning it: "a//b" and "a/../b" keep their odd parts and are refused.
func SplitPath(path string) []string { return strings.Split(path, "/") }

// checkPrefix takes "" or the first one, two or all parts of a path: a prefix ends where a part ends, so that who may see
// the repository "a" does not see "ab".
func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	segments := SplitPath(prefix)
	if len(segments) > 3 {
		return fmt.Errorf("prefix has %d parts: %w", len(segments), ErrPath)
	}
	return checkSegments(segments)
}

func within(prefix, path string) bool {
	return prefix == "" || path == prefix || strings.HasPrefix(path, prefix+"/")
}
