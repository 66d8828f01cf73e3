package image

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
)

// Digest names content by its hash: sha256 or sha512.
type Digest struct {
	Algorithm string
	Hex       string
}

// ParseDigest reads algorithm:hex, lower case, of exactly the right length.
func ParseDigest(s string) (Digest, error) {
	alg, hexa, ok := strings.Cut(s, ":")
	want := map[string]int{"sha256": sha256.Size, "sha512": sha512.Size}[alg]
	if !ok || want == 0 {
		return Digest{}, fmt.Errorf("digest %q is neither sha256 nor sha512", truncate(s, 80))
	}
	if len(hexa) != 2*want || strings.Trim(hexa, "0123456789abcdef") != "" {
		return Digest{}, fmt.Errorf("digest %q is not %d lower-case hexadecimal digits", truncate(s, 150), 2*want)
	}
	return Digest{Algorithm: alg, Hex: hexa}, nil
}

// String is algorithm:hex.
func (d Digest) String() string { return d.Algorithm + ":" + d.Hex }

// MarshalText makes a Digest a JSON string.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	if err != nil {
		return err
	}
	*d = v
	return nil
}

func (d Digest) newHash() hash.Hash {
	if d.Algorithm == "sha512" {
		return sha512.New()
	}
	return sha256.New()
}

// check compares with what a hash of d.newHash has seen.
func (d Digest) check(h hash.Hash) error {
	if got := hex.EncodeToString(h.Sum(nil)); got != d.Hex {
		return fmt.Errorf("digest is %s:%s, expected %s", d.Algorithm, got, d)
	}
	return nil
}

func (d Digest) checkBytes(b []byte) error {
	h := d.newHash()
	h.Write(b)
	return d.check(h)
}

func sha256Digest(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}
