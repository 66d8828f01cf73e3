package judge

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"

	verifier "github.com/cloister/cloister/broker/verifier/cca"
	"github.com/cloister/cloister/tee/cca"
)

// cca judges a token of an Arm CCA realm: CBOR, or the JSON of guests.
func (j *judging) cca() {
	raw, err := ccaToken(j.Evidence)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	t, err := cca.Parse(raw)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	anchors := j.cpaks()
	if len(j.bad) > 0 {
		return
	}
	if anchors == nil {
		j.open(ParseOnly, "no key of the platform given, expected its CPAK or trust anchors by --cert: "+
			"nothing tells who signed the platform token")
		return
	}
	claims, err := verifier.VerifyToken(j.ctx, raw, verifier.Options{TrustAnchors: anchors, AllowUnsecured: true, Now: j.Time, Offline: true})
	if err != nil {
		j.refuse("%v", err)
		return
	}
	j.addClaims(claims)
	j.note("the platform's key (CPAK) was given by the caller, expected to be known as that of instance %x", t.Platform.InstanceID)
	if !t.Platform.Secured() {
		j.reject("cca-platform-lifecycle is %#x, expected 0x3000 to 0x30ff (secured)", t.Platform.Lifecycle)
	}
	j.bindReportData(t.Realm.Challenge)
	j.bindCut("cca-realm-personalization-value (init data)", t.Realm.Personalization, j.InitData)
}

func ccaToken(data []byte) ([]byte, error) {
	if !isJSON(data) {
		if len(data) > 0 && data[0] == 0xd9 { // a CBOR tag
			return data, nil
		}
		return text(data), nil
	}
	var e struct {
		Token json.RawMessage `json:"token"`
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("reading CCA evidence: %w", err)
	}
	if len(e.Token) == 0 {
		return nil, errors.New("reading CCA evidence: it has no member token")
	}
	if e.Token[0] == '"' {
		var s string
		if err := json.Unmarshal(e.Token, &s); err != nil {
			return nil, fmt.Errorf("reading CCA evidence: %w", err)
		}
		return anyBase64(s)
	}
	var list []uint16 // encoding/json takes []uint8 for base64
	if err := json.Unmarshal(e.Token, &list); err != nil {
		return nil, fmt.Errorf("reading CCA evidence: %w", err)
	}
	out := make([]byte, len(list))
	for i, v := range list {
		if v > 0xff {
			return nil, fmt.Errorf("reading CCA evidence: element %d of token is %d, expected a byte", i, v)
		}
		out[i] = byte(v)
	}
	return out, nil
}

// cpaks reads the keys of platforms, nil when none is given.
func (j *judging) cpaks() verifier.TrustAnchors {
	files := j.Certificates
	if j.Key != nil {
		files = append(files[:len(files):len(files)], j.Key)
	}
	if len(files) > 1 {
		j.refuse("%d files with keys of platforms given, expected 1: a CPAK, or a list of trust anchors", len(files))
	}
	if len(files) != 1 {
		return nil
	}
	data := files[0]
	if bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("[")) {
		store, err := verifier.ParseStore(data)
		if err != nil {
			j.refuse("%v", err)
			return nil
		}
		return store
	}
	if isJSON(data) {
		key, err := verifier.ParseJWK(data)
		if err != nil {
			j.refuse("the platform's key (CPAK): %v", err)
			return nil
		}
		return verifier.AnyPlatform{Key: key}
	}
	key, err := publicKey(data)
	if err != nil {
		j.refuse("the platform's key (CPAK): %v", err)
		return nil
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		j.refuse("the platform's key (CPAK) is a %T, expected an EC key", key)
		return nil
	}
	return verifier.AnyPlatform{Key: ec}
}
