// Package snptest makes SEV-SNP evidence for tests: authorities named like AMD's but with keys of their own, certificates of
// a chip's keys, and reports signed with them. Nobody but a test that pins these authorities believes any of it.
package snptest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/cloister/cloister/tee/snp"
)

const rsaBits = 2048 // AMD's have 4096, which would take seconds to make

// Authority is an ARK, ASK or ASVK.
type Authority struct {
	Cert *x509.Certificate
	key  *rsa.PrivateKey
}

// Platform is a machine and the authorities behind it.
type Platform struct {
	Line           snp.Line
	ARK, ASK, ASVK Authority
	HWID           []byte
	TCB            snp.TCB
	Now            time.Time
	key            *ecdsa.PrivateKey
}

// New makes a machine of a line, with certificates around now.
func New(line snp.Line, now time.Time) (*Platform, error) {
	p := &Platform{Line: line, Now: now, TCB: snp.TCB{BootLoader: 4, TEE: 1, SNP: 0x18, Microcode: 0xdb}}
	if line.HasFMC() {
		p.TCB.FMC = 1
	}
	p.HWID = make([]byte, line.ChipIDSize())
	if _, err := rand.Read(p.HWID); err != nil {
		return nil, err
	}
	var err error
	if p.key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
		return nil, err
	}
	if p.ARK, err = p.authority("ARK-"+line.String(), 1, nil); err != nil {
		return nil, err
	}
	if p.ASK, err = p.authority("SEV-"+line.String(), 2, &p.ARK); err != nil {
		return nil, err
	}
	p.ASVK, err = p.authority("SEV-VLEK-"+line.String(), 3, &p.ARK)
	return p, err
}

func name(cn string) pkix.Name {
	return pkix.Name{OrganizationalUnit: []string{"Engineering"}, Organization: []string{"Advanced Micro Devices"}, CommonName: cn}
}

func (p *Platform) authority(cn string, serial int64, parent *Authority) (a Authority, err error) {
	if a.key, err = rsa.GenerateKey(rand.Reader, rsaBits); err != nil {
		return a, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: name(cn), SignatureAlgorithm: x509.SHA384WithRSAPSS,
		NotBefore: p.Now.AddDate(-2, 0, 0), NotAfter: p.Now.AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if parent == nil {
		parent = &Authority{Cert: t, key: a.key}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent.Cert, &a.key.PublicKey, parent.key)
	if err != nil {
		return a, err
	}
	a.Cert, err = x509.ParseCertificate(der)
	return a, err
}

// RootsPEM is the authorities for pinning.
func (p *Platform) RootsPEM() []byte {
	var out []byte
	for _, a := range []Authority{p.ARK, p.ASK, p.ASVK} {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Cert.Raw})...)
	}
	return out
}

// LeafOptions changes a leaf from what it should be.
type LeafOptions struct {
	Key       crypto.PublicKey // of the leaf, nil: the machine's
	Issuer    *Authority       // nil: ASK or ASVK
	Product   string           // "": the line
	CN        string           // "": SEV-VCEK or SEV-VLEK
	NotAfter  time.Time        // zero: years from now
	Algorithm x509.SignatureAlgorithm
	Drop      string // the extension to leave out, below AMD's arc, such as "3.1"
	Replace   []byte // what stands for the dropped extension, nil: nothing
}

// VCEK is the certificate of the machine's own key, DER.
func (p *Platform) VCEK(o LeafOptions) ([]byte, error) { return p.leaf(false, o) }

// VLEK is a certificate of the machine's key as that of a cloud provider, DER.
func (p *Platform) VLEK(o LeafOptions) ([]byte, error) { return p.leaf(true, o) }

func (p *Platform) leaf(vlek bool, o LeafOptions) ([]byte, error) {
	kind, issuer := "VCEK", &p.ASK
	if vlek {
		kind, issuer = "VLEK", &p.ASVK
	}
	if o.Issuer != nil {
		issuer = o.Issuer
	}
	if o.Product == "" {
		o.Product = p.Line.String()
	}
	if o.CN == "" {
		o.CN = "SEV-" + kind
	}
	if o.NotAfter.IsZero() {
		o.NotAfter = p.Now.AddDate(6, 0, 0)
	}
	if o.Key == nil {
		o.Key = &p.key.PublicKey
	}
	if o.Algorithm == 0 {
		o.Algorithm = x509.SHA384WithRSAPSS
	}
	extensions, err := p.extensions(vlek, o)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: new(big.Int), Subject: name(o.CN), SignatureAlgorithm: o.Algorithm,
		NotBefore: p.Now.AddDate(-1, 0, 0), NotAfter: o.NotAfter, ExtraExtensions: extensions,
	}, issuer.Cert, o.Key, issuer.key)
}

func (p *Platform) extensions(vlek bool, o LeafOptions) ([]pkix.Extension, error) {
	arc := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}
	var out []pkix.Extension
	var failed error
	raw := func(value []byte, below ...int) {
		id := slices.Concat(arc, below)
		if o.Drop != "" && id.String() == arc.String()+"."+o.Drop {
			if o.Replace == nil {
				return
			}
			value = o.Replace
		}
		out = append(out, pkix.Extension{Id: id, Value: value})
	}
	put := func(v any, params string, below ...int) {
		b, err := asn1.MarshalWithParams(v, params)
		if err != nil {
			failed = err
		}
		raw(b, below...)
	}
	version := 0
	if p.Line.HasFMC() {
		version = 1
		put(int(p.TCB.FMC), "", 3, 9)
	}
	put(version, "", 1)
	put(o.Product, "ia5", 2)
	for i, v := range map[int]uint8{1: p.TCB.BootLoader, 2: p.TCB.TEE, 3: p.TCB.SNP, 8: p.TCB.Microcode} {
		put(int(v), "", 3, i)
	}
	if vlek {
		put("CN=cloud.example", "ia5", 5)
	} else {
		raw(p.HWID, 4)
	}
	return out, failed
}

// CRL is a list of revoked certificates by the ARK, DER.
func (p *Platform) CRL(thisUpdate, nextUpdate time.Time, revoked ...*x509.Certificate) ([]byte, error) {
	t := &x509.RevocationList{ThisUpdate: thisUpdate, NextUpdate: nextUpdate}
	for _, c := range revoked {
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: thisUpdate})
	}
	return p.SignCRL(t)
}

// SignCRL is any CRL, signed by the ARK, DER.
func (p *Platform) SignCRL(t *x509.RevocationList) ([]byte, error) {
	t.Number, t.SignatureAlgorithm = big.NewInt(1), x509.SHA384WithRSAPSS
	return x509.CreateRevocationList(rand.Reader, t, p.ARK.Cert, p.ARK.key)
}

// Report is a report of a version without a signature, for changing and then signing.
func (p *Platform) Report(version uint32, reportData []byte) []byte {
	b := make([]byte, snp.ReportSize)
	le := binary.LittleEndian
	le.PutUint32(b[0x000:], version)
	le.PutUint64(b[0x008:], 0x3001f)
	le.PutUint32(b[0x034:], snp.AlgECDSAP384SHA384)
	le.PutUint64(b[0x040:], 1)
	copy(b[0x050:0x090], reportData)
	for i := range 48 {
		b[0x090+i] = byte(i + 1)
	}
	copy(b[0x160:0x180], slices.Repeat([]byte{0xff}, 32))
	tcb := p.TCB.Encode(p.Line)
	for _, at := range []int{0x038, 0x180, 0x1e0, 0x1f0} {
		copy(b[at:], tcb[:])
	}
	if version >= 3 {
		copy(b[0x188:], map[snp.Line][]byte{snp.Milan: {0x19, 1, 1}, snp.Genoa: {0x19, 0xa0, 2}, snp.Turin: {0x1a, 2, 1}}[p.Line])
	}
	copy(b[0x1a0:], p.HWID)
	copy(b[0x1e8:], []byte{29, 55, 1, 0, 29, 55, 1, 0})
	return b
}

// Sign signs a report in place with the machine's key and returns it.
func (p *Platform) Sign(report []byte) ([]byte, error) {
	digest := sha512.Sum384(report[:snp.SignedSize])
	r, s, err := ecdsa.Sign(rand.Reader, p.key, digest[:])
	if err != nil {
		return nil, err
	}
	for i, v := range []*big.Int{r, s} {
		at := report[snp.SignedSize+72*i:][:72]
		clear(at)
		v.FillBytes(at[:48])
		slices.Reverse(at[:48])
	}
	return report, nil
}

// Cert is a member of cert_chain.
type Cert struct {
	Type string
	Data []byte
}

// Evidence is a report and certificates in their JSON form.
func Evidence(report []byte, certs ...Cert) (json.RawMessage, error) {
	body, err := snp.ToJSON(report)
	if err != nil {
		return nil, err
	}
	type member struct {
		Type string `json:"cert_type"`
		Data []int  `json:"data"`
	}
	var chain []member
	for _, c := range certs {
		m := member{Type: c.Type, Data: make([]int, len(c.Data))}
		for i, v := range c.Data {
			m.Data[i] = int(v)
		}
		chain = append(chain, m)
	}
	out, err := json.Marshal(map[string]any{"attestation_report": json.RawMessage(body), "cert_chain": chain})
	if err != nil {
		return nil, fmt.Errorf("writing evidence: %w", err)
	}
	return out, nil
}
