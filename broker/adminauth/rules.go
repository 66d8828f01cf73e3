package adminauth

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Rule lets a role call paths.
type Rule struct {
	Role string
	// Paths is a regular expression that the whole path must match: alternatives in it cannot reach beyond it.
	Paths string
	// Methods are those allowed; none means all.
	Methods []string
}

type rule struct {
	role    string
	paths   *regexp.Regexp
	methods []string
}

type rules []rule

// compile checks rules.
func compile(list []Rule) (rules, error) {
	var out rules
	for i, r := range list {
		if r.Role == "" {
			return nil, fmt.Errorf("admin rule %d names no role", i+1)
		}
		if !strings.HasPrefix(strings.TrimPrefix(r.Paths, "^"), "/") {
			return nil, fmt.Errorf("admin rule %d: paths %q do not begin with a slash", i+1, r.Paths)
		}
		// On its own first: a closing parenthesis could otherwise end the group that keeps alternatives in.
		if _, err := regexp.Compile(r.Paths); err != nil {
			return nil, fmt.Errorf("admin rule %d: paths %q: %w", i+1, r.Paths, err)
		}
		re, err := regexp.Compile(`\A(?:` + r.Paths + `)\z`)
		if err != nil {
			return nil, fmt.Errorf("admin rule %d: paths %q: %w", i+1, r.Paths, err)
		}
		out = append(out, rule{r.Role, re, r.Methods})
	}
	return out, nil
}

// admit returns an error that wraps ErrDenied unless a rule lets the role make the call.
func (rs rules) admit(role string, c Call) error {
	for _, r := range rs {
		if r.role == role && r.paths.MatchString(c.Path) && (len(r.methods) == 0 || slices.Contains(r.methods, c.Method)) {
			return nil
		}
	}
	return fmt.Errorf("%w: Role %s not allowed: no rule lets it do %s %s", ErrDenied, plain(role), c.Method, c.Path)
}
