package extract

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Types of the envelope and the statement.
const (
	payloadType = "application/vnd.in-toto+json"

	maxProvenance = 1 << 20
	maxSignatures = 16
	maxSubjects   = 1024
)

func statementTypes() []string {
	return []string{"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"}
}

// defaultPredicates are those of SLSA provenance; versions 1.1 and 1.2 write v1.
func defaultPredicates() []string {
	return []string{"https://slsa.dev/provenance/v1", "https://slsa.dev/provenance/v0.2"}
}

// digestAlgorithms are those of subjects that identify content, with their sizes in bytes. Weak ones, and those over other
// things than the subject's bytes (gitCommit, dirHash), are left out.
var digestAlgorithms = map[string]int{
	"sha256": 32, "sha384": 48, "sha512": 64, "sha3_256": 32, "sha3_384": 48, "sha3_512": 64, "sm3": 32,
}

type envelope struct {
	Payload     string `json:"payload"`
	PayloadType string `json:"payloadType"`
	Signatures  []struct {
		Sig string `json:"sig"`
	} `json:"signatures"`
}

type statement struct {
	Type          string    `json:"_type"`
	PredicateType string    `json:"predicateType"`
	Subject       []subject `json:"subject"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// inToto reads the statement of a DSSE envelope. One signature by a configured key is enough; the key's hint in the envelope is
// not looked at, for nobody signed it.
func (t *Trust) inToto(payload []byte, now time.Time) (*Values, error) {
	if t.inTotoKeys.empty() {
		return nil, errors.New("no key is configured that provenance could be signed with (in_toto.keys)")
	}
	if len(payload) > maxProvenance {
		return nil, fmt.Errorf("envelope has %d bytes, at most %d are read", len(payload), maxProvenance)
	}
	var e envelope
	if err := json.Unmarshal(payload, &e); err != nil {
		return nil, fmt.Errorf("reading DSSE envelope: %w", err)
	}
	if e.PayloadType != payloadType {
		return nil, fmt.Errorf("DSSE envelope has payload type %.64q, want %q", e.PayloadType, payloadType)
	}
	body, err := anyBase64(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("payload of DSSE envelope: %w", err)
	}
	signer, err := t.dsseSigner(&e, body, now)
	if err != nil {
		return nil, err
	}
	var s statement
	if err := json.Unmarshal(body, &s); err != nil {
		return nil, fmt.Errorf("reading in-toto statement: %w", err)
	}
	named, err := t.subjects(&s)
	if err != nil {
		return nil, err
	}
	return &Values{Named: named, Signer: signer}, nil
}

func (t *Trust) dsseSigner(e *envelope, body []byte, now time.Time) (string, error) {
	if n := len(e.Signatures); n == 0 || n > maxSignatures {
		return "", fmt.Errorf("DSSE envelope has %d signatures, want 1 to %d", n, maxSignatures)
	}
	signed := pae(e.PayloadType, body)
	faults := []error{errors.New("DSSE envelope is signed by none of in_toto.keys")}
	for _, key := range t.inTotoKeys.keys {
		if err := key.usable(now); err != nil {
			faults = append(faults, err)
			continue
		}
		for i, s := range e.Signatures {
			sig, err := anyBase64(s.Sig)
			if err != nil {
				return "", fmt.Errorf("signature %d of DSSE envelope: %w", i, err)
			}
			if verifyMessage(key.public, signed, sig) {
				return key.name, nil
			}
		}
	}
	return "", errors.Join(faults...)
}

// pae is DSSE's encoding of what is signed.
func pae(kind string, body []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(kind), kind, len(body)), body...)
}

// subjects names the digests of a statement's subjects.
func (t *Trust) subjects(s *statement) (map[string]json.RawMessage, error) {
	if !slices.Contains(statementTypes(), s.Type) {
		return nil, fmt.Errorf("in-toto statement has type %.64q, want %s", s.Type, strings.Join(statementTypes(), " or "))
	}
	predicates := t.config.InToto.Predicates
	if len(predicates) == 0 {
		predicates = defaultPredicates()
	}
	if !slices.Contains(predicates, s.PredicateType) {
		return nil, fmt.Errorf("in-toto statement has predicate type %.128q, want %s", s.PredicateType, strings.Join(predicates, " or "))
	}
	if len(s.Subject) == 0 || len(s.Subject) > maxSubjects {
		return nil, fmt.Errorf("in-toto statement has %d subjects, want 1 to %d", len(s.Subject), maxSubjects)
	}
	found := map[string][]string{}
	for i, sub := range s.Subject {
		name := sub.Name
		if len(t.config.InToto.Names) > 0 {
			if name = t.config.InToto.Names[sub.Name]; name == "" {
				continue
			}
		}
		if name == "" {
			return nil, fmt.Errorf("subject %d has no name", i)
		}
		digests, err := sub.digests()
		if err != nil {
			return nil, fmt.Errorf("subject %.128q: %w", sub.Name, err)
		}
		for _, d := range digests {
			if !slices.Contains(found[name], d) {
				found[name] = append(found[name], d)
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("in_toto.names has none of the statement's subjects")
	}
	out := map[string]json.RawMessage{}
	for name, list := range found {
		raw, err := encode(list)
		if err != nil {
			return nil, err
		}
		out[name] = raw
	}
	return out, nil
}

// digests returns those of known algorithms in hex, in the algorithms' order.
func (s subject) digests() ([]string, error) {
	var algorithms []string
	for alg := range s.Digest {
		if _, known := digestAlgorithms[alg]; known {
			algorithms = append(algorithms, alg)
		}
	}
	if len(algorithms) == 0 {
		return nil, errors.New("it has no digest of a known algorithm (sha256, sha384, sha512, sha3_…, sm3)")
	}
	slices.Sort(algorithms)
	var out []string
	for _, alg := range algorithms {
		text := strings.ToLower(s.Digest[alg])
		if b, err := hex.DecodeString(text); err != nil || len(b) != digestAlgorithms[alg] {
			return nil, fmt.Errorf("%s is %.140q, want %d bytes in hex", alg, text, digestAlgorithms[alg])
		}
		out = append(out, text)
	}
	return out, nil
}

// anyBase64 reads base64 of either alphabet, as DSSE allows.
func anyBase64(text string) ([]byte, error) {
	text = strings.NewReplacer("-", "+", "_", "/").Replace(text)
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("it is not base64: %w", err)
	}
	if len(b) == 0 {
		return nil, errors.New("it is empty")
	}
	return b, nil
}
