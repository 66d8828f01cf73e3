package image

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const maxRegistryConfigBytes = 1 << 20

// RegistryConfig is the supported subset of registries.conf.
type RegistryConfig struct {
	// UnqualifiedSearchRegistries are tried, in order, for every docker.io reference. Default: docker.io.
	UnqualifiedSearchRegistries []string `toml:"unqualified-search-registries"`
	// Registries are rules; the one with the longest matching prefix applies.
	Registries []RegistryRule `toml:"registry"`
}

// RegistryRule says where images whose name starts with Prefix come from.
type RegistryRule struct {
	Prefix   string           `toml:"prefix"`   // default: Location. *.host matches subdomains
	Location string           `toml:"location"` // replaces the prefix
	Insecure bool             `toml:"insecure"` // plain HTTP
	Blocked  bool             `toml:"blocked"`
	Mirrors  []RegistryMirror `toml:"mirror"`
}

// RegistryMirror is tried before the rule's location.
type RegistryMirror struct {
	Location string `toml:"location"`
	Insecure bool   `toml:"insecure"`
}

// source is one place to look for an image.
type source struct {
	ref      Reference
	insecure bool
}

// parseRegistryConfig reads registries.conf text. Unknown keys are refused.
func parseRegistryConfig(data []byte) (*RegistryConfig, error) {
	if len(data) > maxRegistryConfigBytes {
		return nil, fmt.Errorf("registry configuration has %d bytes, the limit is %d", len(data), maxRegistryConfigBytes)
	}
	var c RegistryConfig
	dec := toml.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			return nil, fmt.Errorf("registry configuration has an unsupported key: %s", strict.String())
		}
		return nil, fmt.Errorf("registry configuration: %w", err)
	}
	return &c, c.validate()
}

func (c *RegistryConfig) validate() error {
	var errs []error
	for i, r := range c.Registries {
		if r.Prefix == "" && r.Location == "" {
			errs = append(errs, fmt.Errorf("registry rule %d has neither prefix nor location", i+1))
		}
		if strings.HasPrefix(r.Prefix, "*.") && r.Location == "" {
			errs = append(errs, fmt.Errorf("registry rule %d: wildcard prefix %q needs a location", i+1, r.Prefix))
		}
		for _, m := range r.Mirrors {
			if m.Location == "" {
				errs = append(errs, fmt.Errorf("registry rule %d has a mirror without location", i+1))
			}
		}
	}
	return errors.Join(errs...)
}

// sources lists where to look for ref, in order.
func (c *RegistryConfig) sources(ref Reference) ([]source, error) {
	candidates := []Reference{ref}
	if ref.Registry == dockerHub && c != nil && len(c.UnqualifiedSearchRegistries) > 0 {
		candidates = nil
		for _, host := range c.UnqualifiedSearchRegistries {
			moved, err := ref.moveTo(host + "/" + ref.Repository)
			if err != nil {
				return nil, fmt.Errorf("unqualified-search-registries: %w", err)
			}
			candidates = append(candidates, moved)
		}
	}
	var out []source
	for _, cand := range candidates {
		rule, suffix := c.match(cand)
		if rule == nil {
			out = append(out, source{ref: cand})
			continue
		}
		if rule.Blocked {
			continue
		}
		for _, m := range rule.Mirrors {
			moved, err := cand.moveTo(m.Location + suffix)
			if err != nil {
				return nil, fmt.Errorf("mirror %q: %w", m.Location, err)
			}
			out = append(out, source{ref: moved, insecure: m.Insecure})
		}
		moved := cand
		if rule.Location != "" {
			var err error
			if moved, err = cand.moveTo(rule.Location + suffix); err != nil {
				return nil, fmt.Errorf("location %q: %w", rule.Location, err)
			}
		}
		out = append(out, source{ref: moved, insecure: rule.Insecure})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("image %s is blocked by registry rule", ref)
	}
	return out, nil
}

// match finds the rule with the longest prefix of ref's name, and what follows the prefix. Prefixes match from the
// start and end at the end of the name, or before : / or @.
func (c *RegistryConfig) match(ref Reference) (*RegistryRule, string) {
	if c == nil {
		return nil, ""
	}
	full, name := ref.String(), ref.Name()
	var best *RegistryRule
	var bestLen int
	var suffix string
	for i := range c.Registries {
		r := &c.Registries[i]
		prefix := r.Prefix
		if prefix == "" {
			prefix = r.Location
		}
		n := matchPrefix(full, prefix)
		if n <= 0 || best != nil && len(prefix) <= bestLen {
			continue
		}
		best, bestLen = r, len(prefix)
		suffix = name[min(n, len(name)):]
	}
	return best, suffix
}

// matchPrefix returns how much of the reference the prefix covers, 0 for no match.
func matchPrefix(full, prefix string) int {
	n := len(prefix)
	if domain, ok := strings.CutPrefix(prefix, "*"); ok {
		host, _, _ := strings.Cut(full, "/")
		bare, _, _ := strings.Cut(host, ":")
		if !strings.HasPrefix(domain, ".") || strings.Contains(domain, "/") || !strings.HasSuffix(bare, domain) && !strings.HasSuffix(host, domain) {
			return 0
		}
		return len(host)
	}
	if n == 0 || !strings.HasPrefix(full, prefix) {
		return 0
	}
	if n < len(full) && full[n] != ':' && full[n] != '/' && full[n] != '@' {
		return 0
	}
	return n
}

// moveTo returns the same tag or digest of another registry/repository.
func (r Reference) moveTo(name string) (Reference, error) {
	suffix := ":" + r.Tag
	if r.Pinned() {
		suffix = "@" + r.Digest.String()
	}
	return ParseReference(strings.TrimSuffix(name, "/") + suffix)
}
