package nvidia

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/beevik/etree"
	"golang.org/x/crypto/ocsp"

	"github.com/cloister/cloister/broker/xmlsig"
	"github.com/cloister/cloister/tee/nvgpu"
)

// fakeNow is the time of the made-up world.
var fakeNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var fakeReportData = bytes.Repeat([]byte{0x11}, 48)

// fakeCert is a certificate with its key.
type fakeCert struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

var fakeSerial int64 = 1000

// newCert issues a certificate; a nil parent signs itself. Names with a leading ! are no authorities.
func newCert(t testing.TB, parent *fakeCert, name string, change func(*x509.Certificate)) *fakeCert {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	fakeSerial++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(fakeSerial), Subject: pkix.Name{CommonName: strings.TrimPrefix(name, "!")},
		NotBefore: fakeNow.AddDate(-1, 0, 0), NotAfter: fakeNow.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, OCSPServer: []string{"http://ocsp.test"}}
	if strings.HasPrefix(name, "!") {
		tmpl.IsCA, tmpl.KeyUsage = false, x509.KeyUsageDigitalSignature
	}
	if change != nil {
		change(tmpl)
	}
	issuer, by := tmpl, key
	if parent != nil {
		issuer, by = parent.Certificate, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeCert{cert, key}
}

func (c *fakeCert) signRaw(t testing.TB, message []byte) []byte {
	t.Helper()
	digest := sha512.Sum384(message)
	r, s, err := ecdsa.Sign(rand.Reader, c.key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, nvgpu.SignatureSize)
	r.FillBytes(out[:48])
	s.FillBytes(out[48:])
	return out
}

// world is a made-up NVIDIA: two roots, a GPU, a manifest signer, and responders.
type world struct {
	t                  testing.TB
	device, rim        []*fakeCert // leaf first
	fwid               []byte
	nvdec              byte
	driver             string
	measurements       map[byte][]byte
	driverRIM, fwRIM   string // payloads; see newWorld
	revoked            map[string]int
	responder          func(cert, issuer *fakeCert) (*x509.Certificate, *fakeCert) // certificate sent along, signer
	answer             func(*ocsp.Response)
	noOCSP             bool
	mangle             func(string) string // of signed manifests
	beforeSign         func(string) string // of manifests
	rimIDs             []string
	ocspAsked          int
	rimErr             error
	version1, version2 string
}

const worldDriver = "NV_GPU_DRIVER_GH100_600.1"

func fwidExtension(t testing.TB, digest []byte) pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(struct {
		Version int
		Key     []asn1.ObjectIdentifier
		FWID    fwid
	}{1, []asn1.ObjectIdentifier{oidSHA384}, fwid{oidSHA384, digest}})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidCompositeDeviceID, Value: der}
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, fwid: bytes.Repeat([]byte{3}, fwidSize), driver: "600.1", nvdec: nvgpu.StatusOn, revoked: map[string]int{},
		version1: "600.1", version2: "96.00.9F.00.01"}
	w.measurements = map[byte][]byte{}
	for i := byte(1); i <= 40; i++ {
		w.measurements[i] = bytes.Repeat([]byte{i}, 48)
	}
	w.driverRIM = resource(0, false, 99) + resource(1, true, 2) + resource(35, true, 77, 36)
	w.fwRIM = resource(0, true, 1) + resource(1, false, 99)
	w.device = issueChain(t, "NVIDIA Device Identity CA", "NVIDIA GH100 Identity", "NVIDIA GH100 Provisioner ICA 1", "GH100 A01 GSP BROM")
	w.newLeaf(nil)
	w.rim = issueChain(t, "NVIDIA CoRIM signing Root CA", "Reference Value CA", "Reference Value L3", "!L4 Signer")
	return w
}

func (w *world) newLeaf(change func(*x509.Certificate)) {
	for w.device[0].IsCA == false {
		w.device = w.device[1:]
	}
	leaf := newCert(w.t, w.device[0], "!GH100 A01 GSP FMC LF", func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{fwidExtension(w.t, w.fwid)}
		if change != nil {
			change(c)
		}
	})
	w.device = append([]*fakeCert{leaf}, w.device...)
}

// issueChain issues certificates from the root down and returns them leaf first.
func issueChain(t testing.TB, names ...string) []*fakeCert {
	var out []*fakeCert
	for _, n := range names {
		var parent *fakeCert
		if len(out) > 0 {
			parent = out[0]
		}
		out = append([]*fakeCert{newCert(t, parent, n, nil)}, out...)
	}
	return out
}

func resource(index int, active bool, values ...byte) string {
	var b strings.Builder
	flag := map[bool]string{true: "True", false: "False"}[active]
	fmt.Fprintf(&b, `<ns0:Resource type="Measurement" index="%d" active="%s" alternatives="%d"`, index, flag, len(values))
	for i, v := range values {
		fmt.Fprintf(&b, ` ns2:Hash%d="%s"`, i, hex.EncodeToString(bytes.Repeat([]byte{v}, 48)))
	}
	return b.String() + ` name="M" size="48"/>`
}

const worldRIM = `<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
  xmlns:ns0="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384" tagId="x">
 <ns0:Meta
  xmlns:ns1="https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"
  colloquialVersion="VERSION" edition="GPU" product="GH100" ns1:PlatformManufacturerId="5703"/>
 <ns0:Payload>PAYLOAD</ns0:Payload>
SIGNATURE</SoftwareIdentity>`

const worldSignature = `<ds:Signature xmlns:ds="http://www.w3.org/2000/09/xmldsig#"><ds:SignedInfo>` +
	`<ds:CanonicalizationMethod Algorithm="http://www.w3.org/2006/12/xml-c14n11"/>` +
	`<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"/>` +
	`<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="http://www.w3.org/2000/09/xmldsig#enveloped-signature"/>` +
	`<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"/></ds:Transforms>` +
	`<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"/>` +
	`<ds:DigestValue>DIGEST</ds:DigestValue></ds:Reference></ds:SignedInfo>` +
	`<ds:SignatureValue>VALUE</ds:SignatureValue><ds:KeyInfo><ds:X509Data>CERTS</ds:X509Data></ds:KeyInfo></ds:Signature>`

// sign makes a manifest. beforeSign changes it before its digest is taken, so that the result is well signed.
func (w *world) sign(version, payload string) []byte {
	w.t.Helper()
	text := strings.NewReplacer("VERSION", version, "PAYLOAD", payload).Replace(worldRIM)
	var certs strings.Builder
	for _, c := range w.rim {
		certs.WriteString("<ds:X509Certificate>" + base64.StdEncoding.EncodeToString(c.Raw) + "</ds:X509Certificate>")
	}
	text = strings.Replace(text, "SIGNATURE", strings.Replace(worldSignature, "CERTS", certs.String(), 1), 1)
	if w.beforeSign != nil {
		text = w.beforeSign(text)
	}
	part := func(tag string) []byte {
		doc := etree.NewDocument()
		if err := doc.ReadFromString(text); err != nil {
			w.t.Fatal(err)
		}
		e := doc.FindElement("//SignedInfo")
		if tag == "" {
			e = doc.Root()
			e.RemoveChild(e.SelectElement("Signature"))
		}
		out, err := xmlsig.Canonical(e)
		if err != nil {
			w.t.Fatal(err)
		}
		return out
	}
	digest := sha512.Sum384(part(""))
	text = strings.Replace(text, "DIGEST", base64.StdEncoding.EncodeToString(digest[:]), 1)
	text = strings.Replace(text, "VALUE", base64.StdEncoding.EncodeToString(w.rim[0].signRaw(w.t, part("SignedInfo"))), 1)
	if w.mangle != nil {
		text = w.mangle(text)
	}
	return []byte(text)
}

func (w *world) RIM(ctx context.Context, id string) ([]byte, error) {
	w.rimIDs = append(w.rimIDs, id)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case w.rimErr != nil:
		return nil, w.rimErr
	case id == worldDriver:
		return w.sign(w.version1, w.driverRIM), nil
	}
	return w.sign(w.version2, w.fwRIM), nil
}

func (w *world) OCSP(_ context.Context, request []byte, url string) ([]byte, error) {
	w.ocspAsked++
	if w.noOCSP {
		return nil, errors.New("off-line")
	}
	if url != "http://ocsp.test" {
		w.t.Errorf("responder is %q", url)
	}
	req, err := ocsp.ParseRequest(request)
	if err != nil {
		return nil, err
	}
	for _, chain := range [][]*fakeCert{w.device, w.rim} {
		for i, c := range chain[:len(chain)-1] {
			if c.SerialNumber.Cmp(req.SerialNumber) != 0 {
				continue
			}
			tmpl := ocsp.Response{Status: ocsp.Good, SerialNumber: c.SerialNumber, ThisUpdate: fakeNow.Add(-time.Hour),
				NextUpdate: fakeNow.Add(time.Hour), IssuerHash: req.HashAlgorithm}
			if reason, ok := w.revoked[c.Subject.CommonName]; ok {
				tmpl.Status, tmpl.RevokedAt, tmpl.RevocationReason = ocsp.Revoked, fakeNow.Add(-time.Hour), reason
			}
			if w.answer != nil {
				w.answer(&tmpl)
			}
			issuer, signer := chain[i+1].Certificate, chain[i+1]
			if w.responder != nil {
				tmpl.Certificate, signer = w.responder(c, chain[i+1])
				issuer = signer.Certificate
			}
			return ocsp.CreateResponse(issuer, signer.Certificate, tmpl, signer.key)
		}
	}
	return nil, fmt.Errorf("no certificate has the serial %v", req.SerialNumber)
}

// report makes the signed exchange for a nonce.
func (w *world) report(nonce []byte) []byte {
	b := append([]byte{0x11, 0xE0, 0x01, 0xFF}, nonce[:32]...)
	b = append(b, 0)
	var record []byte
	for i := byte(1); i <= byte(len(w.measurements)); i++ {
		record = append(append(record, i, 1, 51, 0, 1, 48, 0), w.measurements[i]...)
	}
	b = append(b, 0x11, 0x60, 0, 0, byte(len(w.measurements)), byte(len(record)), byte(len(record)>>8), byte(len(record)>>16))
	b = append(append(b, record...), make([]byte, 32)...)
	var opaque []byte
	field := func(t nvgpu.FieldType, v []byte) {
		opaque = binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(opaque, uint16(t)), uint16(len(v)))
		opaque = append(opaque, v...)
	}
	field(nvgpu.VBIOSVersion, []byte{0, 0x9F, 0, 0x96, 1, 0, 0, 0})
	field(nvgpu.Project, []byte("1010\x00"))
	field(nvgpu.ProjectSKU, []byte("0200\x00"))
	field(nvgpu.ChipSKU, []byte("882\x00\x00"))
	if w.driver != "" {
		field(nvgpu.DriverVersion, []byte(w.driver+"\x00"))
	}
	field(nvgpu.NVDEC0Status, []byte{w.nvdec})
	if w.fwid != nil {
		field(nvgpu.FWID, w.fwid)
	}
	b = append(binary.LittleEndian.AppendUint16(b, uint16(len(opaque))), opaque...)
	return append(b, w.device[0].signRaw(w.t, b)...)
}

func pemOf(certs []*fakeCert) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func (w *world) evidence() json.RawMessage {
	return evidenceJSON(w.t, "HOPPER", base64.StdEncoding.EncodeToString(w.report(fakeReportData)), pemOf(w.device))
}

func (w *world) options() Options {
	return Options{ExpectedReportData: fakeReportData, Now: fakeNow, Collateral: w,
		DeviceRoot: w.device[len(w.device)-1].Certificate, RIMRoot: w.rim[len(w.rim)-1].Certificate}
}

func (w *world) verify() (map[string]any, error) {
	out, err := Verify(context.Background(), w.evidence(), w.options())
	if err != nil {
		return nil, err
	}
	return out[0].Claims, nil
}
