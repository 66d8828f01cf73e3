package kbs

import (
	"fmt"
	"strings"
)

const (
	// PluginResource is the plugin that a URI without a plugin means.
	PluginResource = "resource"

	maxURILength = 4096
)

// ResourceURI names something a broker gives out:
//
//	kbs[+<plugin>]://[<host>]/<segment>[/<segment>...][?<query>]
//
// The host is accepted and forgotten: a guest asks only the broker it was
// configured with.
type ResourceURI struct {
	Plugin string
	// Path is the segments joined by "/", without a slash at either end.
	Path string
	// Query is what follows "?", as written.
	Query string
}

// ParseResourceURI reads s. A path has no empty, "." or ".." segment and no escape,
// so that it means the same to everyone who looks at it.
func ParseResourceURI(s string) (ResourceURI, error) {
	u, err := parseURI(s)
	if err != nil {
		if len(s) > 200 {
			s = s[:200] + "..."
		}
		return ResourceURI{}, fmt.Errorf("resource URI %q: %w", s, err)
	}
	return u, nil
}

func parseURI(s string) (ResourceURI, error) {
	if len(s) > maxURILength {
		return ResourceURI{}, fmt.Errorf("%d bytes exceed the limit of %d", len(s), maxURILength)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return ResourceURI{}, fmt.Errorf(`no "://", expected kbs:///<path>`)
	}
	u := ResourceURI{Plugin: PluginResource}
	if scheme != "kbs" {
		if u.Plugin, ok = strings.CutPrefix(scheme, "kbs+"); !ok {
			return ResourceURI{}, fmt.Errorf("scheme is %q, expected kbs or kbs+<plugin>", scheme)
		}
		if !only(u.Plugin, isPlugin) || u.Plugin == "" || u.Plugin[0] == '.' {
			return ResourceURI{}, fmt.Errorf("plugin name %q is not valid", u.Plugin)
		}
	}
	host, rest, ok := strings.Cut(rest, "/")
	if !ok {
		return ResourceURI{}, fmt.Errorf("no path")
	}
	if !only(host, isHost) {
		return ResourceURI{}, fmt.Errorf("host %q is not valid", host)
	}
	var hasQuery bool
	u.Path, u.Query, hasQuery = strings.Cut(rest, "?")
	if hasQuery && (u.Query == "" || !only(u.Query, isQuery)) {
		return ResourceURI{}, fmt.Errorf("query %q is not valid", u.Query)
	}
	if err := checkPath(u.Path); err != nil {
		return ResourceURI{}, err
	}
	return u, nil
}

func checkPath(path string) error {
	if path == "" {
		return fmt.Errorf("the path is empty")
	}
	for segment := range strings.SplitSeq(path, "/") {
		switch {
		case segment == "" || segment == "." || segment == "..":
			return fmt.Errorf("path segment %q is not allowed", segment)
		case !only(segment, isSegment):
			return fmt.Errorf("path segment %q has a character that is not allowed", segment)
		}
	}
	return nil
}

// String is the form every party agrees on, without a host.
func (u ResourceURI) String() string {
	scheme := "kbs"
	if u.Plugin != PluginResource && u.Plugin != "" {
		scheme += "+" + u.Plugin
	}
	return scheme + ":///" + u.Path + u.suffix()
}

// RequestPath is where to ask a broker for it, below its base URL.
func (u ResourceURI) RequestPath() string {
	plugin := u.Plugin
	if plugin == "" {
		plugin = PluginResource
	}
	return PathPrefix + "/" + plugin + "/" + u.Path + u.suffix()
}

func (u ResourceURI) suffix() string {
	if u.Query == "" {
		return ""
	}
	return "?" + u.Query
}

func only(s string, allowed func(byte) bool) bool {
	for i := range len(s) {
		if !allowed(s[i]) {
			return false
		}
	}
	return true
}

func isAlphanumeric(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9'
}

func isPlugin(b byte) bool { return isAlphanumeric(b) || strings.IndexByte("-_.", b) >= 0 }
func isHost(b byte) bool   { return isAlphanumeric(b) || strings.IndexByte("-_.:[]", b) >= 0 }
func isSegment(b byte) bool {
	return isAlphanumeric(b) || strings.IndexByte("-_.~!$&'()*+,;=:@", b) >= 0
}
func isQuery(b byte) bool { return isSegment(b) || strings.IndexByte("/?%", b) >= 0 }
