package extract

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/beevik/etree"

	"github.com/cloister/cloister/broker/xmlsig"
	"github.com/cloister/cloister/test/evidence"
)

const tag = `<SoftwareIdentity xmlns="` + nsSWID + `" xmlns:h="http://www.w3.org/2001/04/xmlenc#sha384" tagId="id">
 <Meta colloquialVersion="1.2" product="GH100" edition="GPU-X" xmlns:r="` + nsRIM + `" r:PlatformManufacturerStr="ACME of Old"/>
 <Payload>
  <Resource type="Measurement" index="0" active="False" alternatives="1" h:Hash0="00" name="M0" size="1"/>
  <Resource type="Measurement" index="7" active="True" alternatives="3" h:Hash0="aB" h:Hash1="00" h:Hash2="cd" name="M7" size="1"/>
 </Payload>
SIGNATURE</SoftwareIdentity>`

func unsignedTag() string { return strings.Replace(tag, "SIGNATURE", "", 1) }

// signTag signs a manifest; change may change what is signed, and how.
func signTag(t testing.TB, key *ecdsa.PrivateKey, doc string, change func(string) string, chain ...*x509.Certificate) []byte {
	t.Helper()
	digest := sha512.Sum384(canonical(t, strings.Replace(doc, "SIGNATURE", "", 1), ""))
	method := func(name, alg string) string { return "<" + name + ` Algorithm="` + alg + `"></` + name + ">" }
	info := "<SignedInfo>" + method("CanonicalizationMethod", xmlsig.C14N11) + method("SignatureMethod", xmlsig.ECDSA384) +
		`<Reference URI=""><Transforms>` + method("Transform", xmlsig.Enveloped) + method("Transform", xmlsig.C14N11) + "</Transforms>" +
		method("DigestMethod", xmlsig.SHA384) + "<DigestValue>" + base64.StdEncoding.EncodeToString(digest[:]) +
		"</DigestValue></Reference></SignedInfo>"
	if change != nil {
		info = change(info)
	}
	certs := ""
	for _, c := range chain {
		certs += "<X509Certificate>" + base64.StdEncoding.EncodeToString(c.Raw) + "</X509Certificate>"
	}
	whole := func(value string) string {
		return strings.Replace(doc, "SIGNATURE", `<Signature xmlns="`+xmlsig.Namespace+`">`+info+"<SignatureValue>"+value+
			"</SignatureValue><KeyInfo><X509Data>"+certs+"</X509Data></KeyInfo></Signature>", 1)
	}
	sum := sha512.Sum384(canonical(t, whole(""), "./Signature/SignedInfo"))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, xmlsig.SignatureSize)
	r.FillBytes(raw[:xmlsig.SignatureSize/2])
	s.FillBytes(raw[xmlsig.SignatureSize/2:])
	return []byte(whole(base64.StdEncoding.EncodeToString(raw)))
}

func canonical(t testing.TB, doc, path string) []byte {
	t.Helper()
	tree := etree.NewDocument()
	if err := tree.ReadFromString(doc); err != nil {
		t.Fatal(err)
	}
	e := tree.Root()
	if path != "" {
		e = e.FindElement(path)
	}
	out, err := xmlsig.Canonical(e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSWIDUnsigned(t *testing.T) {
	v, err := (*Trust)(nil).Extract("swid", []byte(unsignedTag()), now)
	if err != nil || len(v.Named) != 1 || string(v.Named["ACME_of_Old.GPU_X.measurement_7"]) != `["aB","cd"]` || v.Signer != Unsigned {
		t.Errorf("got %+v, %v", v, err)
	}
	for name, c := range map[string][2]string{
		"no maker": {`r:PlatformManufacturerStr="ACME of Old"`, ""}, "no edition": {`edition="GPU-X"`, ""},
		"maker of no namespace": {"r:PlatformManufacturerStr", "PlatformManufacturerStr"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, nil, "swid", []byte(strings.Replace(unsignedTag(), c[0], c[1], 1)), "names are made of")
		})
	}
	zeros := strings.NewReplacer(`"aB"`, `"00"`, `"cd"`, `"00"`).Replace(unsignedTag())
	refused(t, nil, "swid", []byte(zeros), "names no value")
	refused(t, nil, "swid", []byte("<a/>"), "SoftwareIdentity")
}

func TestSWIDSigned(t *testing.T) {
	ca, key := newAuthority(t, "root"), ecKey(t, elliptic.P384())
	leaf := ca.issue(t, "maker", key.Public(), nil)
	trust := load(t, Config{SWID: SWID{Roots: []string{file(t, certPEM(ca.cert))}}})
	doc := signTag(t, key, tag, nil, leaf, ca.cert)
	v, err := trust.Extract("swid", doc, now)
	if err != nil || len(v.Named) != 1 || v.Signer != "CN=maker" {
		t.Fatalf("got %+v, %v", v, err)
	}
	want := fmt.Sprint(v)
	for i := 0; i < len(doc); i += 3 {
		bad := append([]byte{}, doc...)
		bad[i] ^= 1
		if got, err := trust.Extract("swid", bad, now); err == nil && fmt.Sprint(got) != want {
			t.Errorf("byte %d changed: %+v is accepted", i, got)
		}
	}
	if _, err := trust.Extract("swid", doc, now.Add(48*time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after the time of the signer: %v", err)
	}
	refused(t, trust, "swid", []byte(unsignedTag()), "no <Signature>")
	refused(t, trust, "swid", signTag(t, ecKey(t, elliptic.P384()), tag, nil, leaf, ca.cert), "signature is not that of")
	foreign := newAuthority(t, "root")
	refused(t, trust, "swid", signTag(t, key, tag, nil, foreign.issue(t, "maker", key.Public(), nil), foreign.cert), "unknown authority")
	p256 := ecKey(t, elliptic.P256())
	refused(t, trust, "swid", signTag(t, key, tag, nil, ca.issue(t, "maker", p256.Public(), nil)), "not on P-384")
	spoken := strings.Replace(tag, "<Payload>", `<Payload xml:lang="en">`, 1)
	refused(t, trust, "swid", signTag(t, key, spoken, nil, leaf), "which no manifest needs")
	replace := func(old, new string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, new, 1) }
	}
	for name, c := range map[string]struct {
		change func(string) string
		want   string
	}{
		"part":        {replace(`URI=""`, `URI="#x"`), "whole document"},
		"method":      {replace("ecdsa-sha384", "hmac-sha384"), "SignatureMethod"},
		"transform":   {replace(xmlsig.Namespace+"enveloped-signature", "http://www.w3.org/TR/1999/REC-xslt-19991116"), "Transform"},
		"digest":      {replace("<DigestValue>", "<DigestValue>A"), "not base64"},
		"second":      {replace("</SignedInfo>", "<Reference/></SignedInfo>"), "has 4 elements"},
		"other place": {replace("<DigestMethod", `<DigestMethod xmlns="urn:x"`), "belongs"},
	} {
		t.Run(name, func(t *testing.T) { refused(t, trust, "swid", signTag(t, key, tag, c.change, leaf), c.want) })
	}
	text := string(doc)
	for name, c := range map[string][2]string{
		"content":   {`h:Hash2="cd"`, `h:Hash2="ce"`},
		"wrapped":   {"<Payload>", `<Payload><Resource type="Measurement" index="9" active="True" alternatives="1" h:Hash0="ee" size="1"/>`},
		"maker":     {"ACME of Old", "ACME of New"},
		"attribute": {"<Payload>", `<Payload xml:lang="en">`},
	} {
		t.Run(name, func(t *testing.T) { refused(t, trust, "swid", []byte(strings.Replace(text, c[0], c[1], 1)), "") })
	}
}

func TestSWIDRecorded(t *testing.T) {
	root := evidence.Read(t, "nvidia/roots/rim_root.pem")
	trust := load(t, Config{SWID: SWID{Roots: []string{file(t, root)}}})
	for name, c := range map[string]struct {
		at     string
		signer string // empty: refused, with want
		want   string
	}{
		"NV_GPU_DRIVER_GH100_550.90.07":                             {at: "2025-01-01", signer: "CN=HCC RIM L4 Signer"},
		"NV_GPU_DRIVER_GH100_550.144.03":                            {at: "2025-01-01", signer: "CN=HCC RIM L4 Signer"},
		"NV_GPU_VBIOS_1010_0200_882_96005E0001":                     {at: "2025-01-01", signer: "CN=HCC RIM L4 Signer"},
		"NV_GPU_VBIOS_1010_0200_882_96009F0001":                     {at: "2025-01-01", signer: "CN=HCC RIM L4 Signer"},
		"NV_SWITCH_BIOS_5612_0002_890_9610550001":                   {at: "2026-07-01", signer: "CN=NVIDIA Reference Value L4 LS10"},
		"NV_SWITCH_BIOS_5612_0002_890_9610550001_invalid_signature": {at: "2025-01-01", want: ""},
		"NV_GPU_DRIVER_GH100_570.124.03_expired":                    {at: "2025-06-01", want: "certificate"},
	} {
		at, err := time.Parse(time.DateOnly, c.at)
		if err != nil {
			t.Fatal(err)
		}
		doc := evidence.Read(t, "nvidia/rim/"+name+".xml")
		v, err := trust.Extract("swid", doc, at)
		switch {
		case c.signer == "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %+v, %v, want an error with %q", name, v, err, c.want)
		case c.signer == "":
		case err != nil || !strings.HasPrefix(v.Signer, c.signer):
			t.Errorf("%s: got %+v, %v", name, v, err)
		default:
			for n := range v.Named {
				if !strings.HasPrefix(n, "NVIDIA_Corporation.GPU.measurement_") && !strings.HasPrefix(n, "NVIDIA_Corporation.SWITCH.measurement_") {
					t.Errorf("%s: value is named %q", name, n)
				}
			}
		}
		if v, err := (*Trust)(nil).Extract("swid", doc, at); err != nil || v.Signer != Unsigned {
			t.Errorf("%s: without roots: %+v, %v", name, v, err)
		}
	}
}

func FuzzSWID(f *testing.F) {
	ca, key := newAuthority(f, "root"), ecKey(f, elliptic.P384())
	trust := load(f, Config{SWID: SWID{Roots: []string{file(f, certPEM(ca.cert))}}})
	doc := signTag(f, key, tag, nil, ca.issue(f, "maker", key.Public(), nil))
	good, err := trust.Extract("swid", doc, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(unsignedTag()))
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, err := trust.Extract("swid", data, now); err == nil && fmt.Sprint(v) != fmt.Sprint(good) {
			t.Fatalf("forged: %+v", v)
		}
		if v, err := (*Trust)(nil).Extract("swid", data, now); err == nil && v.Signer != Unsigned {
			t.Fatalf("without roots it is signed: %+v", v)
		}
	})
}
