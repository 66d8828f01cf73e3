package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// PolicyError says why the signature policy refused an image.
type PolicyError struct {
	Image  string // the reference the policy was asked about
	Rule   string // scope and requirement
	Reason error
}

func (e *PolicyError) Error() string {
	return fmt.Sprintf("Image policy rejected: Denied by policy: %s: %v (image %s)", e.Rule, e.Reason, e.Image)
}

func (e *PolicyError) Unwrap() error { return e.Reason }

// policy is a containers-policy.json document.
type policy struct {
	fallback []requirement            // "default"
	docker   map[string][]requirement // by scope
}

// requirement is one thing an image has to fulfil.
type requirement struct {
	Type           string    `json:"type"`
	KeyType        string    `json:"keyType,omitempty"`
	KeyPath        string    `json:"keyPath,omitempty"`
	KeyData        string    `json:"keyData,omitempty"`
	SignedIdentity *identity `json:"signedIdentity,omitempty"`
}

// identity says which name a signature must have been made for.
type identity struct {
	Type             string `json:"type"`
	DockerReference  string `json:"dockerReference,omitempty"`
	DockerRepository string `json:"dockerRepository,omitempty"`
	Prefix           string `json:"prefix,omitempty"`
	SignedPrefix     string `json:"signedPrefix,omitempty"`
}

// parsePolicy reads and checks a policy. What is not understood is refused: ignoring a member could turn a strict
// rule into a lax one.
func parsePolicy(data []byte) (*policy, error) {
	var doc struct {
		Default    []json.RawMessage                       `json:"default"`
		Transports map[string]map[string][]json.RawMessage `json:"transports"`
	}
	if err := decodeJSON(data, &doc, true); err != nil {
		return nil, fmt.Errorf("not a valid policy: %w", err)
	}
	if doc.Default == nil {
		return nil, errors.New("not a valid policy: it has no \"default\"")
	}
	p := &policy{docker: map[string][]requirement{}}
	var err error
	if p.fallback, err = parseRequirements(doc.Default); err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	for scope, list := range doc.Transports["docker"] {
		if p.docker[scope], err = parseRequirements(list); err != nil {
			return nil, fmt.Errorf("transports.docker[%q]: %w", truncate(scope, 200), err)
		}
	}
	return p, nil
}

func parseRequirements(list []json.RawMessage) ([]requirement, error) {
	if len(list) == 0 {
		return nil, errors.New("an empty list of requirements would accept everything; use insecureAcceptAnything or reject")
	}
	var out []requirement
	for i, raw := range list {
		var r requirement
		if err := decodeJSON(raw, &r, true); err != nil {
			return nil, fmt.Errorf("requirement %d: %w", i+1, err)
		}
		if err := r.validate(); err != nil {
			return nil, fmt.Errorf("requirement %d (%s): %w", i+1, truncate(r.Type, 60), err)
		}
		out = append(out, r)
	}
	return out, nil
}

func (r requirement) validate() error {
	switch r.Type {
	case "insecureAcceptAnything", "reject":
		if r != (requirement{Type: r.Type}) {
			return errors.New("takes no other members")
		}
		return nil
	case "signedBy":
		if r.KeyType != "GPGKeys" {
			return fmt.Errorf("keyType is %q, expected \"GPGKeys\"", truncate(r.KeyType, 60))
		}
	case "sigstoreSigned":
		if r.KeyType != "" {
			return errors.New("keyType does not belong here")
		}
		if id := r.SignedIdentity; id != nil && id.Type != "matchRepository" && id.Type != "exactRepository" {
			return fmt.Errorf("signedIdentity is %q, expected matchRepository or exactRepository", truncate(id.Type, 60))
		}
	default:
		return errors.New("unknown type")
	}
	if (r.KeyPath == "") == (r.KeyData == "") {
		return errors.New("exactly one of keyPath and keyData must be given")
	}
	return r.SignedIdentity.validate()
}

// scopes lists the scopes that apply to ref, the most specific first.
func scopes(ref Reference) []string {
	out := []string{ref.String()}
	for name := ref.Name(); ; {
		out = append(out, name)
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			break
		}
		name = name[:i]
	}
	host, _, _ := strings.Cut(ref.Registry, ":")
	for {
		_, parent, ok := strings.Cut(host, ".")
		if !ok {
			break
		}
		out = append(out, "*."+parent)
		host = parent
	}
	return append(out, "")
}

// find returns the requirements for ref and the name of the scope they come from.
func (p *policy) find(ref Reference) (string, []requirement) {
	for _, scope := range scopes(ref) {
		if reqs, ok := p.docker[scope]; ok {
			return fmt.Sprintf("scope %q", scope), reqs
		}
	}
	return "default", p.fallback
}

// admit asks the policy about an image. Without a policy only a reference pinned by digest is accepted: then the
// digest, which whoever wrote the reference chose, decides.
func (c *Client) admit(ctx context.Context, s *settings, reg *registry, ref Reference, img *resolved) error {
	if s.policy == nil {
		if ref.Pinned() {
			c.log.Info("image accepted by digest, no signature policy is configured", "image", ref.String())
			return nil
		}
		return &PolicyError{Image: ref.String(), Rule: "no signature policy is configured",
			Reason: errors.New("expected a reference pinned by digest (name@sha256:...), got a tag")}
	}
	scope, reqs := s.policy.find(ref)
	for _, req := range reqs {
		if err := c.check(ctx, s, reg, ref, img, req); err != nil {
			if ctx.Err() != nil {
				return err
			}
			return &PolicyError{Image: ref.String(), Rule: fmt.Sprintf("rejected by `%s` rule of %s", req.Type, scope), Reason: err}
		}
	}
	types := make([]string, len(reqs))
	for i, r := range reqs {
		types[i] = r.Type
	}
	c.log.Info("image accepted by policy", "image", ref.String(), "scope", scope, "requirements", slices.Compact(types))
	return nil
}

func (c *Client) check(ctx context.Context, s *settings, reg *registry, ref Reference, img *resolved, req requirement) error {
	switch req.Type {
	case "insecureAcceptAnything":
		return nil
	case "reject":
		return errors.New("the policy rejects every image here")
	case "sigstoreSigned":
		return c.checkCosign(ctx, reg, ref, img, req)
	case "signedBy":
		return c.checkSimpleSigning(ctx, s, ref, img, req)
	}
	return fmt.Errorf("unknown requirement %q", req.Type)
}
