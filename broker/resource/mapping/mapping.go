// Package mapping gives resources the names they have in a secret store of a cloud, which has no folders.
//
// By default the whole path makes the name, and no two paths make the same: the name can be read back. Between the parts
// stand two escape characters (or a '/', where the store takes it); what a store does not take inside a part is written
// as the escape character and two hex digits, and so is the escape character itself. Hence a/b/c and a-b/c/d never meet.
//
// Upstream takes the tag alone (kbs-protocol.md section 6.1), so that a/t/key and b/t/key are one secret and a policy
// about repositories decides nothing. That is to be had with Mapping = Tag, for one repository and one type; for all of
// them only with a switch that is called insecure.
package mapping

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cloister/cloister/broker/resource"
)

// ErrUnsupported is returned for what a mapping or a store cannot do.
var ErrUnsupported = errors.New("not possible with this secret store")

// The mappings.
const (
	Path = "path"
	Tag  = "tag"
)

// Config selects a mapping.
type Config struct {
	// Mapping is Path, the default, or Tag.
	Mapping string `toml:"mapping"`
	// NamePrefix stands before every name, so that rights can be given for it.
	NamePrefix string `toml:"name_prefix"`
	// Repository and Type are the only ones served with Tag.
	Repository string `toml:"repository"`
	Type       string `toml:"type"`
	// InsecureAnyPath serves every repository and type with Tag: each sees the secrets of all.
	InsecureAnyPath bool `toml:"insecure_any_path"`
}

// Store is what names a store takes.
type Store struct {
	// Escape starts an escape; 0 is a store that takes all characters of resource paths, and '/' between parts.
	Escape byte
	// Underscore and Dot tell whether names may hold these, FoldsCase that letters of both cases are the same.
	Underscore, Dot, FoldsCase bool
	// Max bounds a name, in bytes.
	Max int
}

// AWS, Azure and GCP are the stores.
var (
	AWS   = Store{Underscore: true, Dot: true, Max: 512}
	Azure = Store{Escape: '-', FoldsCase: true, Max: 127}
	GCP   = Store{Escape: '_', Underscore: true, Max: 255}
)

// Validate reports every fault of a Config for a store.
func (s Store) Validate(c Config) error {
	var errs []error
	for i := range len(c.NamePrefix) {
		if b := c.NamePrefix[i]; !s.takes(b) && !(b == '/' && s.Escape == 0) || b >= 'A' && b <= 'Z' && s.FoldsCase {
			errs = append(errs, fmt.Errorf("name_prefix has a %q at %d, which names in this store may not have", b, i))
			break
		}
	}
	if len(c.NamePrefix) > s.Max/2 {
		errs = append(errs, fmt.Errorf("name_prefix has %d bytes, at most %d are taken", len(c.NamePrefix), s.Max/2))
	}
	switch c.Mapping {
	case "", Path:
		if c.Repository != "" || c.Type != "" || c.InsecureAnyPath {
			errs = append(errs, fmt.Errorf("repository, type and insecure_any_path are for mapping = %q", Tag))
		}
	case Tag:
		_, err := resource.ParsePath([]string{c.Repository, c.Type, "tag"})
		switch {
		case c.InsecureAnyPath && (c.Repository != "" || c.Type != ""):
			errs = append(errs, errors.New("give either repository and type or insecure_any_path"))
		case !c.InsecureAnyPath && err != nil:
			errs = append(errs, fmt.Errorf("mapping = %q needs the one repository and the one type that are served (or insecure_any_path)", Tag))
		}
	default:
		errs = append(errs, fmt.Errorf("mapping is %.32q, want %s or %s", c.Mapping, Path, Tag))
	}
	return errors.Join(errs...)
}

// Insecure lists the insecure switches that are on.
func (c Config) Insecure() []string {
	if c.InsecureAnyPath {
		return []string{"insecure_any_path"}
	}
	return nil
}

// takes tells whether a name may hold a character of a path.
func (s Store) takes(b byte) bool {
	switch {
	case b >= '0' && b <= '9', b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b == '-':
		return true
	case b == '_':
		return s.Underscore
	case b == '.':
		return s.Dot
	}
	return false
}

// plain tells whether a character stands for itself inside a part.
func (s Store) plain(b byte) bool {
	return s.takes(b) && (s.Escape == 0 || b != s.Escape) && !(s.FoldsCase && b >= 'A' && b <= 'Z')
}

func (s Store) between() string {
	if s.Escape == 0 {
		return "/"
	}
	return string([]byte{s.Escape, s.Escape})
}

const hexDigits = "0123456789abcdef"

// Name is the name of a resource; ok is false when the store can have none for it.
func (s Store) Name(c Config, p resource.Path) (name string, ok bool) {
	parts := p.Segments()
	if c.Mapping == Tag {
		if !c.InsecureAnyPath && (parts[0] != c.Repository || parts[1] != c.Type) {
			return "", false
		}
		for i := range len(parts[2]) {
			if !s.takes(parts[2][i]) {
				return "", false
			}
		}
		name = c.NamePrefix + parts[2]
		return name, len(name) <= s.Max
	}
	var out strings.Builder
	out.WriteString(c.NamePrefix)
	for i, part := range parts {
		if i > 0 {
			out.WriteString(s.between())
		}
		for j := range len(part) {
			if b := part[j]; s.plain(b) {
				out.WriteByte(b)
			} else {
				out.Write([]byte{s.Escape, hexDigits[b>>4], hexDigits[b&15]})
			}
		}
	}
	return out.String(), out.Len() <= s.Max
}

// Path is the resource that has a name; ok is false for names that none has, such as those of others' secrets.
func (s Store) Path(c Config, name string) (p resource.Path, ok bool) {
	rest, found := strings.CutPrefix(name, c.NamePrefix)
	if !found {
		return p, false
	}
	parts := []string{c.Repository, c.Type, rest}
	if c.Mapping != Tag {
		parts = s.split(rest)
	} else if c.InsecureAnyPath {
		return p, false // it has one in every repository
	}
	p, err := resource.ParsePath(parts)
	if err != nil {
		return p, false
	}
	back, ok := s.Name(c, p)
	return p, ok && back == name // one way of writing only
}

func (s Store) split(name string) []string {
	if s.Escape == 0 {
		return strings.Split(name, "/")
	}
	var parts []string
	var part []byte
	for i := 0; i < len(name); i++ {
		switch {
		case name[i] != s.Escape:
			part = append(part, name[i])
		case strings.HasPrefix(name[i+1:], string(s.Escape)):
			parts, part = append(parts, string(part)), nil
			i++
		case i+2 < len(name):
			high, low := strings.IndexByte(hexDigits, name[i+1]), strings.IndexByte(hexDigits, name[i+2])
			if high < 0 || low < 0 {
				return nil
			}
			part = append(part, byte(high<<4|low))
			i += 2
		default:
			return nil
		}
	}
	return append(parts, string(part))
}
