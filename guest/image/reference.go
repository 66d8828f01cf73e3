package image

import (
	"errors"
	"fmt"
	"strings"
)

const (
	dockerHub         = "docker.io"
	maxReferenceBytes = 1024
)

// Reference names an image: a registry, a repository in it, and a tag or a digest.
// With a digest the tag has no meaning and is dropped: whoever can choose the tag cannot choose the content.
type Reference struct {
	Registry   string // host or host:port, as users write it (docker.io, not registry-1.docker.io)
	Repository string // path, with library/ added for docker.io
	Tag        string // set if Digest is not
	Digest     Digest // zero if the reference is not pinned
}

// Pinned says whether the reference names its content by digest.
func (r Reference) Pinned() bool { return r.Digest.Algorithm != "" }

// Name is registry/repository.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String is the full reference: registry/repository:tag or registry/repository@digest.
func (r Reference) String() string {
	if r.Pinned() {
		return r.Name() + "@" + r.Digest.String()
	}
	return r.Name() + ":" + r.Tag
}

// ParseReference reads an image reference by docker's conventions: the default registry is docker.io, its
// one-component repositories belong to library/, the default tag is latest.
func ParseReference(s string) (Reference, error) {
	ref, err := parseReference(s)
	if err != nil {
		return Reference{}, fmt.Errorf("image reference %q: %w", truncate(s, 200), err)
	}
	return ref, nil
}

func parseReference(s string) (Reference, error) {
	if s == "" {
		return Reference{}, errors.New("it is empty")
	}
	if len(s) > maxReferenceBytes {
		return Reference{}, fmt.Errorf("it is %d bytes long, the limit is %d", len(s), maxReferenceBytes)
	}
	rest := strings.TrimPrefix(s, "docker://")
	var ref Reference
	if name, digest, ok := strings.Cut(rest, "@"); ok {
		d, err := ParseDigest(digest)
		if err != nil {
			return Reference{}, err
		}
		ref.Digest, rest = d, name
	}
	if slash, colon := strings.LastIndexByte(rest, '/'), strings.LastIndexByte(rest, ':'); colon > slash {
		if !validTag(rest[colon+1:]) {
			return Reference{}, fmt.Errorf("%q is not a tag", rest[colon+1:])
		}
		ref.Tag, rest = rest[colon+1:], rest[:colon]
	}
	if ref.Pinned() {
		ref.Tag = ""
	} else if ref.Tag == "" {
		ref.Tag = "latest"
	}
	ref.Registry, ref.Repository = splitDomain(rest)
	if !validHost(ref.Registry) {
		return Reference{}, fmt.Errorf("%q is not a registry host", ref.Registry)
	}
	if ref.Registry == dockerHub && !strings.Contains(ref.Repository, "/") {
		ref.Repository = "library/" + ref.Repository
	}
	if len(ref.Repository) > 255 {
		return Reference{}, errors.New("the repository name is longer than 255 bytes")
	}
	for c := range strings.SplitSeq(ref.Repository, "/") {
		if !validComponent(c) {
			return Reference{}, fmt.Errorf("%q is not a repository name: component %q", ref.Repository, c)
		}
	}
	return ref, nil
}

// splitDomain tells a registry host from the first component of a docker.io repository.
func splitDomain(s string) (registry, repository string) {
	first, rest, ok := strings.Cut(s, "/")
	if !ok || (!strings.ContainsAny(first, ".:") && first != "localhost" && strings.ToLower(first) == first) {
		return dockerHub, s
	}
	if first == "index.docker.io" || first == "registry-1.docker.io" {
		first = dockerHub
	}
	return first, rest
}

func validHost(h string) bool {
	if h == "" || len(h) > 261 {
		return false
	}
	host, port := h, ""
	if strings.HasPrefix(h, "[") { // IPv6 literal
		end := strings.IndexByte(h, ']')
		if end < 3 || strings.Trim(h[1:end], "0123456789abcdefABCDEF:.") != "" {
			return false
		}
		rest := h[end+1:]
		if rest == "" {
			return true
		}
		if rest[0] != ':' {
			return false
		}
		return validPort(rest[1:])
	}
	if i := strings.IndexByte(h, ':'); i >= 0 {
		host, port = h[:i], h[i+1:]
		if !validPort(port) {
			return false
		}
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !isAlnum(c) && (c < 'A' || c > 'Z') && c != '-' {
				return false
			}
		}
	}
	return true
}

func validPort(p string) bool {
	return p != "" && len(p) <= 5 && strings.Trim(p, "0123456789") == ""
}

// validComponent accepts lower-case alphanumeric words joined by one dot, one or two underscores, or dashes.
func validComponent(c string) bool {
	if c == "" || !isAlnum(c[0]) || !isAlnum(c[len(c)-1]) {
		return false
	}
	for i := 0; i < len(c); {
		if isAlnum(c[i]) {
			i++
			continue
		}
		start := i
		for i < len(c) && !isAlnum(c[i]) {
			i++
		}
		sep := c[start:i]
		if sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
	}
	return true
}

func validTag(t string) bool {
	if t == "" || len(t) > 128 || t[0] == '.' || t[0] == '-' {
		return false
	}
	for _, c := range []byte(t) {
		if !isAlnum(c) && (c < 'A' || c > 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// truncate shortens foreign text for an error message.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
