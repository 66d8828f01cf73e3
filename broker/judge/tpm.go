package judge

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	verifier "github.com/cloister/cloister/broker/verifier/tpm"
	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/tee/tpm"
)

// tpm judges a TPM's quote: the JSON of guests, or the quote (TPMS_ATTEST) with its signature beside it.
func (j *judging) tpm() {
	keys := j.attestationKeys()
	if len(j.bad) > 0 {
		return
	}
	if isJSON(j.Evidence) {
		j.tpmJSON(keys)
		return
	}
	a, err := tpm.ParseAttest(j.Evidence)
	if err != nil {
		j.refuse("the quote: %v", err)
		return
	}
	j.quoteFields(a)
	if j.Signature == nil {
		j.open(ParseOnly, "no signature of the quote given, expected one by --signature")
		return
	}
	sig, err := tpm.ParseSignature(text(j.Signature))
	if err != nil {
		j.refuse("the signature: %v", err)
		return
	}
	got := []byte{byte(sig.Scheme >> 8), byte(sig.Scheme), byte(sig.Hash >> 8), byte(sig.Hash)}
	if j.SigAlg != nil && !bytes.Equal(got, j.SigAlg) {
		j.refuse("algorithm of the signature is %x, expected %x as given by the caller", got, j.SigAlg)
	}
	if len(keys) == 0 {
		j.open(ParseOnly, "no attestation key given, expected that of a known TPM by --cert or --ak")
		return
	}
	if err := verifyAny(keys, j.Evidence, sig); err != nil {
		j.refuse("signature of the quote: %v", err)
		return
	}
	if der, err := x509.MarshalPKIXPublicKey(keys[0]); err == nil && len(keys) == 1 {
		j.claim("ak_public", base64.StdEncoding.EncodeToString(der))
	}
	j.note("the attestation key was given by the caller, expected to be known as a TPM's")
	j.quoteBinding(a)
	j.quoteRegisters(a, sig)
}

func verifyAny(keys []crypto.PublicKey, message []byte, sig *tpm.Signature) error {
	var faults []error
	for _, k := range keys {
		err := tpm.VerifySignature(k, message, sig)
		if err == nil {
			return nil
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

func (j *judging) quoteFields(a *tpm.Attest) {
	j.claim("report_data", hex.EncodeToString(a.ExtraData))
	j.claim("pcr_digest", hex.EncodeToString(a.PCRDigest))
	j.claim("clock", map[string]any{"clock": a.Clock, "reset_count": a.ResetCount, "restart_count": a.RestartCount, "safe": a.Safe})
	selected := map[string]any{}
	for _, s := range a.Selections {
		selected[s.Bank.String()] = s.PCRs
	}
	j.claim("pcrs_selected", selected)
}

func (j *judging) quoteBinding(a *tpm.Attest) {
	j.bind("nonce (qualifying data)", a.ExtraData, j.Nonce)
	j.bind("report_data (qualifying data)", a.ExtraData, j.ReportData)
	if j.Nonce == nil && j.ReportData == nil {
		j.note("the nonce was not compared: none given, so the quote may be a replay")
	}
	if j.PCRDigest != nil && !bytes.Equal(a.PCRDigest, j.PCRDigest) {
		j.refuse("pcr_digest of the quote is %x, expected %x as given by the caller", a.PCRDigest, j.PCRDigest)
	}
	if j.Selection == nil {
		return
	}
	same := slices.EqualFunc(a.Selections, j.Selection, func(got tpm.PCRSelection, want Selection) bool {
		return got.Bank.String() == want.Bank && slices.Equal(got.PCRs, want.PCRs)
	})
	if !same {
		j.refuse("the quote selects %s, expected %v as given by the caller", selections(a.Selections), j.Selection)
	}
}

func selections(s []tpm.PCRSelection) string {
	var out []string
	for _, sel := range s {
		out = append(out, fmt.Sprintf("{%s %v}", sel.Bank, sel.PCRs))
	}
	return "[" + strings.Join(out, " ") + "]"
}

// quoteRegisters holds register values against the quote, and an event log against the values.
func (j *judging) quoteRegisters(a *tpm.Attest, sig *tpm.Signature) {
	hash, ok := sig.Hash.Hash()
	if !ok {
		j.refuse("hash of the signature is %v, expected sha256, sha384 or sha512", sig.Hash)
		return
	}
	var log *eventlog.Log
	if j.Log != nil {
		var err error
		if log, err = eventlog.Parse(j.Log); err != nil {
			j.refuse("event log: %v", err)
			return
		}
		j.content(log)
	}
	if j.PCRs == nil {
		j.note("the register values were not checked: none given, only their digest is known")
		if j.InitData != nil || log != nil {
			j.open(ValidSignature, "init data and event log cannot be held against the quote: no register values given, expected some by --pcrs")
		}
		return
	}
	values, err := readPCRs(j.PCRs, a.Selections)
	if err != nil {
		j.refuse("the register values: %v", err)
		return
	}
	digest, err := tpm.PCRDigest(a.Selections, values, hash)
	if err != nil {
		j.refuse("%v", err)
		return
	}
	if !bytes.Equal(digest, a.PCRDigest) {
		j.refuse("the register values hash to %x, expected pcr_digest %x as quoted", digest, a.PCRDigest)
		return
	}
	j.initDataPCR(values)
	if log != nil {
		j.logOfPCRs(log, a.Selections, values)
	}
	j.claimPCRs(a.Selections, values)
}

func (j *judging) claimPCRs(selected []tpm.PCRSelection, values tpm.PCRValues) {
	out := map[string]any{}
	for _, s := range selected {
		bank := map[string]any{}
		for _, i := range s.PCRs {
			bank[fmt.Sprintf("pcr%02d", i)] = hex.EncodeToString(values[s.Bank][i])
		}
		out[s.Bank.String()] = bank
	}
	j.claim("tpm", out)
}

// firmwarePCRs are those that the log of a boot is about, from 0: each is extended at least by a separator. Others may be extended by
// programs that write no log, or one of their own.
const firmwarePCRs = 8

// logOfPCRs replays the log in every bank of the quote: each quoted register that it speaks of must come out, and it must speak of
// those of firmware unless nothing was measured into them.
func (j *judging) logOfPCRs(log *eventlog.Log, selected []tpm.PCRSelection, values tpm.PCRValues) {
	for _, s := range selected {
		registers, err := log.Replay(eventlog.Alg(s.Bank))
		if err != nil {
			j.refuse("event log: %v", err)
			continue
		}
		for _, i := range s.PCRs {
			got, spoken := registers[uint32(i)]
			if !spoken && i < firmwarePCRs && !zero(values[s.Bank][i]) {
				j.refuseAs(Partial, "the log does not speak of %v register %d, expected events that give %x as quoted", s.Bank, i, values[s.Bank][i])
			}
			if spoken && !bytes.Equal(got, values[s.Bank][i]) {
				j.refuse("the log gives %v register %d = %x, expected %x as quoted", s.Bank, i, got, values[s.Bank][i])
			}
		}
	}
}

// tpmJSON judges the evidence of guests, which brings its key along.
func (j *judging) tpmJSON(keys []crypto.PublicKey) {
	claims, err := verifier.Verify(j.Evidence, verifier.Options{InitDataDigest: j.InitData, Now: j.Time})
	if err != nil {
		j.refuse("%v", err)
		return
	}
	j.addClaims(claims)
	quoted, _ := claims["report_data"].(string)
	extra, _ := hex.DecodeString(quoted)
	j.bind("nonce (qualifying data)", extra, j.Nonce)
	j.bind("report_data (qualifying data)", extra, j.ReportData)
	if j.Nonce == nil && j.ReportData == nil {
		j.note("the nonce was not compared: none given, so the quote may be a replay")
	}
	if j.Log != nil {
		j.jsonLog(claims)
	}
	own := fmt.Sprint(claims["ak_public"])
	if claims["ak_endorsement"] == verifier.EndorsedByEK {
		return
	}
	if len(keys) == 0 {
		j.open(ValidSignature, "ak_public is %s, expected one that is known to be a TPM's (--ak): signed by a key that anybody can have made",
			own)
		return
	}
	for _, k := range keys {
		if der, err := x509.MarshalPKIXPublicKey(k); err == nil && base64.StdEncoding.EncodeToString(der) == own {
			return
		}
	}
	j.refuse("ak_public is %s, expected one of the %d given by --ak: signed by a key that anybody can have made", own, len(keys))
}

// jsonLog holds a log that did not come with the evidence against its registers.
func (j *judging) jsonLog(claims map[string]any) {
	log, err := eventlog.Parse(j.Log)
	if err != nil {
		j.refuse("event log: %v", err)
		return
	}
	values, all := map[int][]byte{}, []int{}
	for i := range 24 {
		quoted, _ := claims[fmt.Sprintf("pcr%02d", i)].(string)
		if v, err := hex.DecodeString(quoted); err == nil && len(v) == 32 && i != 8 { // the guest extends 8 after the log ends
			values[i], all = v, append(all, i)
		}
	}
	j.logOfPCRs(log, []tpm.PCRSelection{{Bank: tpm.AlgSHA256, PCRs: all}}, tpm.PCRValues{tpm.AlgSHA256: values})
	j.content(log)
}

// attestationKeys reads the keys the caller knows.
func (j *judging) attestationKeys() []crypto.PublicKey {
	var out []crypto.PublicKey
	files := slices.Clone(j.Certificates)
	if j.Key != nil {
		files = append(files, j.Key)
	}
	for i, f := range files {
		key, err := publicKey(f)
		if err != nil {
			j.refuse("attestation key %d: %v", i+1, err)
			continue
		}
		out = append(out, key)
	}
	return out
}

// publicKey reads a key as PEM, DER, base64 of DER, certificate, TPMT_PUBLIC or TPM2B_PUBLIC.
func publicKey(data []byte) (crypto.PublicKey, error) {
	der := data
	if block, _ := pem.Decode(data); block != nil {
		der = block.Bytes
	} else if b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data))); err == nil && len(b) > 0 {
		der = b
	}
	if key, err := x509.ParsePKIXPublicKey(der); err == nil {
		switch key.(type) {
		case *rsa.PublicKey, *ecdsa.PublicKey:
			return key, nil
		}
		return nil, fmt.Errorf("a key of type %T, expected RSA or EC", key)
	}
	if c, err := x509.ParseCertificate(der); err == nil {
		return c.PublicKey, nil
	}
	p, err := tpm.ParsePublic(data)
	if err != nil {
		var sized error
		if p, sized = tpm.ParsePublic2B(data); sized != nil {
			return nil, fmt.Errorf("neither a public key (PEM, DER, base64), a certificate nor a TPM's public area: %w", err)
		}
	}
	const want = tpm.AttrRestricted | tpm.AttrSign
	if p.Attributes&want != want || p.Attributes&tpm.AttrDecrypt != 0 {
		return nil, fmt.Errorf("attributes of the key are %#x, expected a restricted signing key: others sign what is no quote",
			uint32(p.Attributes))
	}
	return p.Key, nil
}

func (j *judging) initDataPCR(values tpm.PCRValues) {
	if j.InitData == nil {
		return
	}
	got, quoted := values[tpm.AlgSHA256][8]
	if !quoted {
		j.refuse("init data is %x, expected the quote to be over pcr08 of the sha256 bank", j.InitData)
		return
	}
	want, err := pcr8(j.InitData)
	if err != nil {
		j.refuse("init data cannot be held against a TPM: %v", err)
		return
	}
	if !bytes.Equal(got, want) {
		j.refuse("pcr08 is %x, expected %x, the init data extended once", got, want)
	}
}

// jsonPCRs are register values of one bank by number.
type jsonPCRs map[string]string

func parseJSONPCRs(data []byte, bank tpm.Alg) (tpm.PCRValues, error) {
	var list jsonPCRs
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	out := map[int][]byte{}
	for name, value := range list {
		var i int
		if _, err := fmt.Sscanf(name, "%d", &i); err != nil || i < 0 || i > 31 {
			return nil, fmt.Errorf("register %.16q, expected a number from 0 to 31", name)
		}
		b, err := hex.DecodeString(value)
		if err != nil {
			return nil, fmt.Errorf("register %d: %w", i, err)
		}
		out[i] = b
	}
	return tpm.PCRValues{bank: out}, nil
}
