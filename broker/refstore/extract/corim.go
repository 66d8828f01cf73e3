package extract

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"

	"github.com/cloister/cloister/tee/corim"
)

// corim reads a CoRIM, signed or not. Both the manifest's and the signature's times are enforced, and end its values.
func (t *Trust) corim(payload []byte, now time.Time) (*Values, error) {
	inner, signed, err := corim.Unwrap(payload)
	if err != nil {
		return nil, err
	}
	out := &Values{Signer: Unsigned}
	var span corim.Validity
	if signed {
		if inner, span, out.Signer, err = t.openCoRIM(inner, now); err != nil {
			return nil, err
		}
	}
	if out.Signer == Unsigned && t.config.CoRIM.RequireSigned {
		return nil, errors.New("CoRIM is not signed, corim.require_signed wants it to be")
	}
	doc, err := corim.Parse(inner)
	if err != nil {
		return nil, err
	}
	span = span.Within(doc.Validity)
	if err := span.Check(now); err != nil {
		return nil, fmt.Errorf("CoRIM: %w", err)
	}
	out.NotAfter = span.NotAfter
	if out.Named, err = corimValues(doc.Measurements); err != nil {
		return nil, err
	}
	return out, nil
}

// openCoRIM returns the payload of an untagged COSE_Sign1 and who signed it: nobody we know of, when no anchor is configured.
func (t *Trust) openCoRIM(object []byte, now time.Time) (payload []byte, span corim.Validity, signer string, err error) {
	var m cose.UntaggedSign1Message
	if err := m.UnmarshalCBOR(object); err != nil {
		return nil, span, "", fmt.Errorf("reading COSE_Sign1: %w", err)
	}
	if len(m.Payload) == 0 {
		return nil, span, "", errors.New("COSE_Sign1 has no payload in it")
	}
	if _, ok := m.Headers.Protected[cose.HeaderLabelCritical]; ok {
		return nil, span, "", errors.New("COSE_Sign1 has critical headers, which nobody here understands")
	}
	var header []byte
	if err := cbor.Unmarshal(m.Headers.RawProtected, &header); err != nil {
		return nil, span, "", fmt.Errorf("reading protected header: %w", err)
	}
	if span, err = corim.ParseProtected(header); err != nil {
		return nil, span, "", err
	}
	if t.corimAnchors.empty() {
		return m.Payload, span, Unsigned, nil
	}
	alg, err := m.Headers.Protected.Algorithm()
	if err != nil {
		return nil, span, "", fmt.Errorf("COSE_Sign1: %w", err)
	}
	candidates := t.corimAnchors.keys
	var faults []error
	if chain, err := x5chain(m.Headers); err != nil {
		return nil, span, "", err
	} else if len(chain) > 0 {
		key, err := t.corimAnchors.signer(chain, now)
		if err != nil {
			faults = append(faults, err)
		} else {
			candidates = append([]anchorKey{key}, candidates...)
		}
	}
	for _, key := range candidates {
		if err := verifyCOSE(&m, alg, key, now); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", key.name, err))
			continue
		}
		return m.Payload, span, key.name, nil
	}
	return nil, span, "", errors.Join(append([]error{errors.New("CoRIM is signed by none of corim.anchors")}, faults...)...)
}

func verifyCOSE(m *cose.UntaggedSign1Message, alg cose.Algorithm, key anchorKey, now time.Time) error {
	if err := key.usable(now); err != nil {
		return err
	}
	if !fits(alg, key.public) {
		return fmt.Errorf("algorithm %s is not one of a %T", alg, key.public)
	}
	verifier, err := cose.NewVerifier(alg, key.public)
	if err != nil {
		return err
	}
	return m.Verify(nil, verifier)
}

// fits tells whether an algorithm is one of a key: for curves the one of their size, so that the document chooses nothing.
func fits(alg cose.Algorithm, key crypto.PublicKey) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return alg == map[int]cose.Algorithm{256: cose.AlgorithmES256, 384: cose.AlgorithmES384, 521: cose.AlgorithmES512}[k.Params().BitSize]
	case ed25519.PublicKey:
		return alg == cose.AlgorithmEdDSA
	case *rsa.PublicKey:
		return alg == cose.AlgorithmPS256 || alg == cose.AlgorithmPS384 || alg == cose.AlgorithmPS512
	}
	return false
}

// x5chain returns the certificates of a message, signer first. They are proven by the chain, so that it does not matter
// in which header they are.
func x5chain(h cose.Headers) ([][]byte, error) {
	v, ok := h.Protected[cose.HeaderLabelX5Chain]
	if !ok {
		v, ok = h.Unprotected[cose.HeaderLabelX5Chain]
	}
	if !ok {
		return nil, nil
	}
	if one, ok := v.([]byte); ok {
		return [][]byte{one}, nil
	}
	list, ok := v.([]any)
	if !ok || len(list) > maxChain {
		return nil, fmt.Errorf("x5chain is not a list of up to %d certificates", maxChain)
	}
	var out [][]byte
	for _, e := range list {
		der, ok := e.([]byte)
		if !ok {
			return nil, errors.New("x5chain has something that is not bytes")
		}
		out = append(out, der)
	}
	return out, nil
}

// corimValues names the measurements as upstream does. Where upstream keeps the last of several measurements of one name, here
// they are alternatives if they are of one element, which is what CoRIM means by it; if they are of different
// elements the manifest is refused, for the name would let one element have the value of the other.
func corimValues(list []corim.Measurement) (map[string]json.RawMessage, error) {
	digests, raws, owner := map[string][]string{}, map[string]string{}, map[string]string{}
	for _, m := range list {
		var parts []string
		for _, p := range []string{m.Vendor, m.Model, m.Key, m.Name, m.Serial} {
			if p != "" {
				parts = append(parts, p)
			}
		}
		own := func(kind string) (string, error) {
			name := strings.Join(append(slices.Clone(parts), kind), "/")
			if other, ok := owner[name]; ok && other != m.Identity {
				return "", fmt.Errorf("CoRIM has two elements that both are named %.200q", name)
			}
			owner[name] = m.Identity
			return name, nil
		}
		if m.Digests != nil {
			name, err := own("digests")
			if err != nil {
				return nil, err
			}
			for _, d := range m.Digests {
				if h := hex.EncodeToString(d); !slices.Contains(digests[name], h) {
					digests[name] = append(digests[name], h)
				}
			}
		}
		if m.Raw != nil {
			name, err := own("raw_bytes")
			if err != nil {
				return nil, err
			}
			h := hex.EncodeToString(m.Raw)
			if old, ok := raws[name]; ok && old != h {
				return nil, fmt.Errorf("CoRIM has two values of %.200q, which holds one", name)
			}
			raws[name] = h
		}
	}
	out := map[string]json.RawMessage{}
	var errs []error
	for name, v := range digests {
		raw, err := encode(v)
		out[name], errs = raw, append(errs, err)
	}
	for name, v := range raws {
		raw, err := encode(v)
		out[name], errs = raw, append(errs, err)
	}
	return out, errors.Join(errs...)
}
