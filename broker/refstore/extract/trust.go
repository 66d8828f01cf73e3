package extract

import (
	"errors"
	"fmt"
)

// Config names the files of trust anchors, PEM, and says what needs a signature.
type Config struct {
	SWID   SWID   `toml:"swid"`
	CoRIM  CoRIM  `toml:"corim"`
	InToto InToto `toml:"in_toto"`
}

// SWID is about SWID tags and reference integrity manifests.
type SWID struct {
	// Roots are certificates of authorities. With any, only manifests that are signed under one are taken; without, every
	// manifest is taken as unsigned.
	Roots []string `toml:"roots"`
}

// CoRIM is about concise reference integrity manifests.
type CoRIM struct {
	// Anchors are public keys, certificates of signers, and certificates of authorities. With any, a signed manifest must be
	// signed under one; without, it is taken as unsigned.
	Anchors []string `toml:"anchors"`
	// RequireSigned refuses manifests that are not signed.
	RequireSigned bool `toml:"require_signed"`
}

// InToto is about in-toto provenance in DSSE envelopes.
type InToto struct {
	// Keys are public keys, or certificates of signers. Without any, all provenance is refused.
	Keys []string `toml:"keys"`
	// Names gives subjects the names of their reference values. With any, subjects without are left out; with none, a
	// subject's own name is the value's.
	Names map[string]string `toml:"names"`
	// Predicates are the accepted predicate types, SLSA provenance when there are none. Signed statements are also made of
	// tests that failed, so that not every type vouches for its subjects.
	Predicates []string `toml:"predicates"`
}

// Trust is what a Config says, read.
type Trust struct {
	config Config

	swidRoots, corimAnchors, inTotoKeys *anchors
}

// Load reads the files that a Config names. All faults are reported at once.
func Load(c Config) (*Trust, error) {
	t := &Trust{config: c}
	var errs []error
	read := func(key string, files []string) *anchors {
		a, err := loadAnchors(files)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
		return a
	}
	t.swidRoots = read("swid.roots", c.SWID.Roots)
	t.corimAnchors = read("corim.anchors", c.CoRIM.Anchors)
	t.inTotoKeys = read("in_toto.keys", c.InToto.Keys)
	if len(t.swidRoots.keys) > 0 {
		errs = append(errs, fmt.Errorf("swid.roots: %s is not a certificate of an authority", t.swidRoots.keys[0].name))
	}
	if len(t.inTotoKeys.roots) > 0 {
		errs = append(errs, fmt.Errorf("in_toto.keys: %q is an authority, want keys or certificates of signers: envelopes carry no chain",
			t.inTotoKeys.roots[0].Subject))
	}
	if c.CoRIM.RequireSigned && t.corimAnchors.empty() {
		errs = append(errs, errors.New("corim.require_signed: corim.anchors has no key to check signatures with"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return t, nil
}
