package nvidia

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cloister/cloister/tee/rim"
	"github.com/cloister/cloister/test/evidence"

	"github.com/cloister/cloister/broker/xmlsig"
)

func recordedManifest(t testing.TB, id string) (chain, error) {
	whole, err := rim.Parse(evidence.Read(t, "nvidia/rim/"+id+".xml"))
	if err != nil {
		return nil, err
	}
	return parseDER(whole.Certificates)
}

// TestForgedManifests tries to have content read that is not signed. Forgeries begin with a good manifest of the driver.
func TestForgedManifests(t *testing.T) {
	evil := resource(1, true, 99)
	replace := func(old, new string) func(string) string {
		return func(s string) string { return strings.ReplaceAll(s, old, new) }
	}
	between := func(s, from, to string) string {
		i := strings.Index(s, from)
		return s[i : strings.Index(s, to)+len(to)]
	}
	for _, c := range []struct {
		name, want string
		// mangle changes a signed manifest, sign one that is signed after.
		mangle, sign func(string) string
	}{
		{name: "content", want: "document has the digest", mangle: replace(`index="1"`, `index="2"`)},
		{name: "white space", want: "document has the digest", mangle: replace("<ns0:Payload>", "<ns0:Payload> ")},
		{name: "version", want: "document has the digest", mangle: replace(`product="GH100"`, `product="GH101"`)},
		{name: "digest", want: "signature is not that of", mangle: replace("<ds:DigestValue>", "<ds:DigestValue> ")},
		{name: "wrapped in a new root", want: "more than one <Payload>", mangle: func(s string) string {
			return strings.Replace(s, "<ns0:Payload>", "<ns0:Payload>"+evil+"</ns0:Payload><ns0:Payload>", 1)
		}},
		{name: "original hidden in the signature", want: "document has the digest", mangle: func(s string) string {
			original := between(s, "<ns0:Payload>", "</ns0:Payload>")
			s = strings.Replace(s, original, "<ns0:Payload>"+evil+"</ns0:Payload>", 1)
			return strings.Replace(s, "</ds:Signature>", "<ds:Object>"+original+"</ds:Object></ds:Signature>", 1)
		}},
		{name: "second signature", want: "more than one <Signature>", mangle: func(s string) string {
			return strings.Replace(s, "</SoftwareIdentity>", between(s, "<ds:Signature ", "</ds:Signature>")+"</SoftwareIdentity>", 1)
		}},
		{name: "second SignedInfo", want: "more than one <SignedInfo>", mangle: func(s string) string {
			info := between(s, "<ds:SignedInfo>", "</ds:SignedInfo>")
			return strings.Replace(s, info, info+info, 1)
		}},
		{name: "signature elsewhere", want: "no <Signature>", mangle: func(s string) string {
			sig := between(s, "<ds:Signature ", "</ds:Signature>")
			return strings.Replace(strings.Replace(s, sig, "", 1), `5703"/>`, `5703">`+sig+"</ns0:Meta>", 1)
		}},
		{name: "reference to a part", want: "not over the whole document", sign: replace(`URI=""`, `URI="#x"`)},
		{name: "reference without URI", want: "not over the whole document", sign: replace(` URI=""`, ``)},
		{name: "typed reference", want: "not over the whole document", sign: replace(`URI=""`, `URI="" Type="x"`)},
		{name: "two references", want: "SignedInfo has 4 elements", sign: func(s string) string {
			r := between(s, "<ds:Reference", "</ds:Reference>")
			return strings.Replace(s, r, r+strings.Replace(r, "DIGEST", "AA==", 1), 1)
		}},
		{name: "XPath", want: "Transforms has 3 elements", sign: replace("</ds:Transforms>",
			`<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xpath-19991116"><ds:XPath>/x</ds:XPath></ds:Transform></ds:Transforms>`)},
		{name: "other transform", want: "Transform is", sign: replace(`<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"/>`,
			`<ds:Transform Algorithm="http://www.w3.org/2001/10/xml-exc-c14n#"/>`)},
		{name: "other canonical form", want: "CanonicalizationMethod is", sign: replace(
			`<ds:CanonicalizationMethod Algorithm="http://www.w3.org/2006/12/xml-c14n11"/>`,
			`<ds:CanonicalizationMethod Algorithm="http://www.w3.org/TR/2001/REC-xml-c14n-20010315"/>`)},
		{name: "HMAC", want: "SignatureMethod is", sign: replace("xmldsig-more#ecdsa-sha384", "xmldsig-more#hmac-sha384")},
		{name: "SHA-1", want: "DigestMethod is", sign: replace("http://www.w3.org/2001/04/xmldsig-more#sha384",
			"http://www.w3.org/2000/09/xmldsig#sha1")},
		{name: "parameters", want: "without parameters", sign: replace(`ecdsa-sha384"/>`,
			`ecdsa-sha384"><ds:HMACOutputLength>8</ds:HMACOutputLength></ds:SignatureMethod>`)},
		{name: "xml attribute", want: "xml:base", sign: replace("<ns0:Payload>", `<ns0:Payload xml:base="urn:x">`)},
		{name: "comment", want: "xml.Comment", mangle: replace("<ns0:Payload>", "<ns0:Payload><!---->")},
		{name: "short signature", want: "SignatureValue has 0 bytes", mangle: func(s string) string {
			return strings.Replace(s, between(s, "<ds:SignatureValue>", "</ds:SignatureValue>"), "<ds:SignatureValue></ds:SignatureValue>", 1)
		}},
		{name: "signed twice", want: "more than one <Signature>", sign: func(s string) string {
			return strings.Replace(s, "<ns0:Payload>", `<ds:Signature xmlns:ds="`+xmlsig.Namespace+`"/><ns0:Payload>`, 1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.noOCSP = true
			w.mangle, w.beforeSign = c.mangle, c.sign
			claims, err := w.verify()
			if err != nil {
				t.Fatal(err)
			}
			notes := fmt.Sprint(claims[claimNotes])
			if claims["x-nvidia-gpu-driver-rim-signature-verified"] != false || claims["measres"] != "fail" || !strings.Contains(notes, c.want) {
				t.Errorf("signature %v, measres %v, notes %s, want %q", claims["x-nvidia-gpu-driver-rim-signature-verified"],
					claims["measres"], notes, c.want)
			}
		})
	}
}

func TestForeignSigners(t *testing.T) {
	for name, change := range map[string]func(*world){
		"other root":          func(w *world) { w.rim = issueChain(w.t, "NVIDIA CoRIM signing Root CA", "!L4 Signer") },
		"device as signer":    func(w *world) { w.rim = w.device },
		"certificate of root": func(w *world) { w.rim[3] = w.device[4] },
	} {
		w := newWorld(t)
		o := w.options()
		change(w)
		o.Collateral = w
		out, err := Verify(t.Context(), w.evidence(), o)
		if err != nil {
			t.Fatal(err)
		}
		c := out[0].Claims
		if c["x-nvidia-gpu-driver-rim-signature-verified"] != false || c[claimMatch] != false || c["measres"] != "fail" {
			t.Errorf("%s: signature %v, match %v", name, c["x-nvidia-gpu-driver-rim-signature-verified"], c[claimMatch])
		}
		if got := certClaim(t, c, "x-nvidia-gpu-driver-rim-cert-chain", "x-nvidia-cert-status"); got != certInvalid {
			t.Errorf("%s: chain is %v", name, got)
		}
	}
}

// TestTamperedManifest changes bytes all over a recorded manifest: either it is refused, or what is read is unchanged.
func TestTamperedManifest(t *testing.T) {
	doc := evidence.Read(t, "nvidia/rim/NV_GPU_VBIOS_1010_0200_882_96009F0001.xml")
	signer, err := recordedManifest(t, "NV_GPU_VBIOS_1010_0200_882_96009F0001")
	if err != nil {
		t.Fatal(err)
	}
	good, err := signedContent(doc, signer)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint(good)
	for i := 0; i < len(doc); i += 29 {
		doc[i] ^= 1
		if got, err := signedContent(doc, signer); err == nil && fmt.Sprint(got) != want {
			t.Fatalf("byte %d changed: other content is accepted", i)
		}
		doc[i] ^= 1
	}
}

func FuzzSignedContent(f *testing.F) {
	w := newWorld(f)
	f.Add(w.sign("600.1", w.driverRIM))
	var signer chain
	for _, c := range w.rim {
		signer = append(signer, c.Certificate)
	}
	plain := strings.NewReplacer("VERSION", "600.1", "PAYLOAD", w.driverRIM, "SIGNATURE", "").Replace(worldRIM)
	want := fmt.Sprint(rim.ParseContent([]byte(plain)))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if got, err := signedContent(doc, signer); err == nil && fmt.Sprint(got, err) != want {
			t.Fatalf("forged: %v", got)
		}
	})
}
