package image

import (
	"errors"
	"fmt"
	"strings"
)

// validate checks the members of a signedIdentity; nil means the requirement's default.
func (id *identity) validate() error {
	if id == nil {
		return nil
	}
	want := identity{Type: id.Type}
	switch id.Type {
	case "matchExact", "matchRepoDigestOrExact", "matchRepository":
	case "exactReference":
		want.DockerReference = id.DockerReference
		if _, err := ParseReference(id.DockerReference); err != nil {
			return fmt.Errorf("signedIdentity: dockerReference: %w", err)
		}
	case "exactRepository":
		want.DockerRepository = id.DockerRepository
		if _, err := parseRepository(id.DockerRepository); err != nil {
			return fmt.Errorf("signedIdentity: dockerRepository: %w", err)
		}
	case "remapIdentity":
		want.Prefix, want.SignedPrefix = id.Prefix, id.SignedPrefix
		if id.Prefix == "" || id.SignedPrefix == "" {
			return errors.New("signedIdentity: remapIdentity needs prefix and signedPrefix")
		}
	default:
		return fmt.Errorf("signedIdentity: unknown type %q", truncate(id.Type, 60))
	}
	if *id != want {
		return fmt.Errorf("signedIdentity: %s has members that do not belong to it", id.Type)
	}
	return nil
}

// accepts says whether a signature made for signed holds for the image ref.
func (id *identity) accepts(ref Reference, signed string) error {
	claimed, err := ParseReference(signed)
	if err != nil {
		return fmt.Errorf("signature is for an unreadable identity: %w", err)
	}
	ok, expected := false, ""
	switch id.Type {
	case "matchExact":
		ok, expected = !ref.Pinned() && claimed == ref && hasTag(signed), ref.String()
		if ref.Pinned() {
			return fmt.Errorf("signature is for %q, but matchExact cannot accept an image named by digest", truncate(signed, 200))
		}
	case "matchRepoDigestOrExact":
		ok, expected = matchRepoDigestOrExact(ref, claimed, signed)
	case "matchRepository":
		ok, expected = claimed.Name() == ref.Name(), ref.Name()
	case "exactReference":
		want, err := ParseReference(id.DockerReference)
		ok, expected = err == nil && claimed == want, id.DockerReference
	case "exactRepository":
		want, err := parseRepository(id.DockerRepository)
		ok, expected = err == nil && claimed.Name() == want, id.DockerRepository
	case "remapIdentity":
		mapped, err := id.remap(ref)
		if err != nil {
			return err
		}
		ok, expected = matchRepoDigestOrExact(mapped, claimed, signed)
	}
	if !ok {
		return fmt.Errorf("signature is for %q, expected %q (%s)", truncate(signed, 200), expected, id.Type)
	}
	return nil
}

func matchRepoDigestOrExact(ref, claimed Reference, signed string) (ok bool, expected string) {
	if ref.Pinned() {
		return claimed.Name() == ref.Name(), ref.Name()
	}
	return claimed == ref && hasTag(signed), ref.String()
}

// remap replaces the prefix of the image's name; it must end where a component of the name does.
func (id *identity) remap(ref Reference) (Reference, error) {
	name := ref.Name()
	rest, ok := strings.CutPrefix(name, id.Prefix)
	if !ok || rest != "" && !strings.HasSuffix(id.Prefix, "/") && rest[0] != '/' && rest[0] != ':' {
		return ref, nil // the rule does not concern this image
	}
	return ref.moveTo(id.SignedPrefix + rest)
}

// hasTag tells an explicit tag or digest from a bare repository, which the parser completes with :latest.
func hasTag(s string) bool {
	last := s[strings.LastIndexByte(s, '/')+1:]
	return strings.ContainsAny(last, ":@")
}

// parseRepository reads registry/repository without tag or digest.
func parseRepository(s string) (string, error) {
	ref, err := ParseReference(s)
	if err != nil {
		return "", err
	}
	if hasTag(s) {
		return "", fmt.Errorf("%q has a tag or digest, expected a repository", truncate(s, 200))
	}
	return ref.Name(), nil
}
