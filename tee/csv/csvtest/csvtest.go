// Package csvtest makes Hygon certificates and reports under keys of its own, for tests.
package csvtest

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"hash"
	"slices"

	"github.com/emmansun/gmsm/sm2"

	"github.com/cloister/cloister/tee/csv"
	"github.com/cloister/cloister/tee/eventlog"
)

// Serial is the serial number of the chip.
const Serial = "TEST00000001"

// Key is a private key with its user id.
type Key struct {
	private *sm2.PrivateKey
	point   []byte // uncompressed
	uid     string
}

// PKI is a root and a machine below it.
type PKI struct {
	HRK, HSK, CEK, PEK Key
	Root               []byte // certificate of HRK
	Chain              []byte // certificates of HSK and CEK
	PEKCert            []byte
}

// New makes keys and certificates.
func New() (*PKI, error) {
	p := &PKI{}
	for _, k := range []struct {
		key *Key
		uid string
	}{{&p.HRK, "HYGON-SSD-HRK"}, {&p.HSK, "HYGON-SSD-HSK"}, {&p.CEK, "HYGON-SSD-CEK"}, {&p.PEK, "HYGON-SSD-PEK"}} {
		private, err := sm2.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		public, err := sm2.PublicKeyToECDH(&private.PublicKey)
		if err != nil {
			return nil, err
		}
		*k.key = Key{private, public.Bytes(), k.uid}
	}
	var err error
	if p.Root, err = RootCert(p.HRK, p.HRK, csv.UsageHRK); err != nil {
		return nil, err
	}
	hsk, err := RootCert(p.HRK, p.HSK, csv.UsageHSK)
	if err != nil {
		return nil, err
	}
	cek, err := Cert(p.HSK, csv.UsageHSK, p.CEK, csv.UsageCEK)
	if err != nil {
		return nil, err
	}
	p.Chain = append(hsk, cek...)
	p.PEKCert, err = Cert(p.CEK, csv.UsageCEK, p.PEK, csv.UsagePEK)
	return p, err
}

// RootCert makes a certificate of the first kind.
func RootCert(signer, subject Key, usage csv.Usage) ([]byte, error) {
	b := make([]byte, csv.RootCertSize)
	le := binary.LittleEndian
	le.PutUint32(b, 1)
	copy(b[4:], "key id "+subject.uid[10:])
	copy(b[20:], "key id "+signer.uid[10:])
	le.PutUint32(b[36:], uint32(usage))
	putKey(b[64:], subject)
	sig, err := signer.Sign(b[:576])
	copy(b[576:], sig)
	return b, err
}

// Cert makes a certificate of the second kind; its second signature is empty.
func Cert(signer Key, signerUsage csv.Usage, subject Key, usage csv.Usage) ([]byte, error) {
	b := make([]byte, csv.CertSize)
	le := binary.LittleEndian
	le.PutUint32(b, 1)
	le.PutUint32(b[8:], uint32(usage))
	le.PutUint32(b[12:], csv.AlgSM2)
	putKey(b[16:], subject)
	sig, err := signer.Sign(b[:1044])
	le.PutUint32(b[1044:], uint32(signerUsage))
	le.PutUint32(b[1048:], csv.AlgSM2)
	copy(b[1052:], sig)
	le.PutUint32(b[1564:], 0x1000)
	return b, err
}

func putKey(b []byte, k Key) {
	binary.LittleEndian.PutUint32(b, 3)
	point := k.point
	putNumber(b[4:], point[1:33])
	putNumber(b[76:], point[33:])
	binary.LittleEndian.PutUint16(b[148:], uint16(len(k.uid)))
	copy(b[150:], k.uid)
}

func putNumber(b, bigEndian []byte) {
	n := slices.Clone(bigEndian)
	slices.Reverse(n)
	copy(b, n)
}

// Sign signs as Hygon's firmware does: 144 bytes.
func (k Key) Sign(message []byte) ([]byte, error) {
	hash, err := sm2.CalculateSM2Hash(&k.private.PublicKey, message, []byte(k.uid))
	if err != nil {
		return nil, err
	}
	r, s, err := sm2.Sign(rand.Reader, &k.private.PrivateKey, hash)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 144)
	putNumber(out, r.FillBytes(make([]byte, 32)))
	putNumber(out[72:], s.FillBytes(make([]byte, 32)))
	return out, nil
}

// Report is what a report says.
type Report struct {
	Extended   bool
	ReportData []byte
	Measure    []byte
	Policy     uint32
	RTMR       [5][]byte
	ANonce     uint32
}

// Make makes a page with a report as firmware returns it: masked if it is of version 1.
func (p *PKI) Make(r Report) ([]byte, error) {
	b := make([]byte, csv.PageSize)
	le := binary.LittleEndian
	copy(b[64:], r.ReportData)
	copy(b[128:], "mnonce of a test")
	copy(b[144:176], r.Measure)
	le.PutUint32(b[176:], r.Policy)
	le.PutUint32(b[180:], uint32(csv.UsagePEK))
	le.PutUint32(b[184:], csv.AlgSM2)
	le.PutUint32(b[188:], r.ANonce)
	signed, tail := 180, 336
	if r.Extended {
		signed, tail = 1024, 1168
		for i, v := range r.RTMR {
			copy(b[208+32*i:], v)
		}
	}
	copy(b[tail:], p.PEKCert)
	copy(b[tail+csv.CertSize:], Serial)
	stored := b[tail : tail+csv.CertSize+96]
	if !r.Extended {
		mask(b[:188], b[188:192])
		mask(stored, b[188:192])
	}
	sig, err := p.PEK.Sign(b[:signed])
	copy(b[tail-144:], sig)
	mac := hmac.New(func() hash.Hash { return eventlog.SM3.New() }, []byte("mnonce of a test"))
	mac.Write(stored)
	copy(b[tail+csv.CertSize+96:], mac.Sum(nil))
	return b, err
}

func mask(b, m []byte) {
	for i := range b {
		b[i] ^= m[i%4]
	}
}

// Evidence wraps a report as CoCo guests do; chain may be nil.
func (p *PKI) Evidence(r Report, chain []byte, eventLog string) (json.RawMessage, error) {
	page, err := p.Make(r)
	if err != nil {
		return nil, err
	}
	magic, flags := make([]byte, 16), 0
	if r.Extended {
		magic, flags = []byte("ATTESTATION_EXT\x00"), 1
	} else {
		mask(page[336:336+csv.CertSize+96], page[188:192])
	}
	certs := map[string]any{"pek": CertJSON(p.PEKCert)}
	if chain != nil {
		certs["hsk_cek"] = map[string]any{"hsk": rootCertJSON(chain[:csv.RootCertSize]), "cek": CertJSON(chain[csv.RootCertSize:])}
	}
	e := map[string]any{
		"attestation_report": map[string]any{"magic": list(magic), "flags": flags, "data": list(page)},
		"cert_chain":         certs,
		"serial_number":      list(append([]byte(Serial), make([]byte, 64-len(Serial))...)),
		"cc_eventlog":        nil,
	}
	if eventLog != "" {
		e["cc_eventlog"] = eventLog
	}
	return json.Marshal(e)
}

func list(b []byte) []int {
	out := make([]int, len(b))
	for i, v := range b {
		out[i] = int(v)
	}
	return out
}

type object = map[string]any

func pointJSON(b []byte) object {
	return object{"g": binary.LittleEndian.Uint32(b), "x": list(b[4:76]), "y": list(b[76:148])}
}

func signatureJSON(b []byte) object { return object{"r": list(b[:72]), "s": list(b[72:144])} }

// CertJSON is a certificate of the second kind as JSON.
func CertJSON(b []byte) any {
	le := binary.LittleEndian
	var sigs []any
	for _, s := range [][]byte{b[1044:1564], b[1564:]} {
		sigs = append(sigs, object{
			"usage": le.Uint32(s), "algo": le.Uint32(s[4:]), "signature": signatureJSON(s[8:]), "_reserved": list(s[152:520]),
		})
	}
	return object{
		"body": object{"ver": le.Uint32(b), "data": object{
			"firmware": object{"major": b[4], "minor": b[5]}, "reserved1": le.Uint16(b[6:]),
			"pubkey":   object{"usage": le.Uint32(b[8:]), "algo": le.Uint32(b[12:]), "key": pointJSON(b[16:])},
			"uid_size": le.Uint16(b[164:]), "user_id": list(b[166:420]), "sid": list(b[420:436]), "reserved2": list(b[436:1044]),
		}},
		"sigs": sigs,
	}
}

func rootCertJSON(b []byte) any {
	le := binary.LittleEndian
	return object{
		"body": object{
			"preamble": object{"ver": le.Uint32(b), "data": object{
				"kid": list(b[4:20]), "sid": list(b[20:36]), "usage": le.Uint32(b[36:]), "reserved": list(b[40:64]),
			}},
			"pubkey": pointJSON(b[64:]), "uid_size": le.Uint16(b[212:]), "user_id": list(b[214:468]), "reserved": list(b[468:576]),
		},
		"signature": signatureJSON(b[576:]), "_reserved": list(b[720:832]),
	}
}
