package nvidia

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"

	"github.com/cloister/cloister/tee/nvgpu"
	"github.com/cloister/cloister/tee/rim"
)

// The one form of signature that manifests have.
const (
	nsDSig       = "http://www.w3.org/2000/09/xmldsig#"
	algC14N11    = "http://www.w3.org/2006/12/xml-c14n11"
	algEnveloped = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
	algECDSA384  = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
	algSHA384    = "http://www.w3.org/2001/04/xmldsig-more#sha384"
)

// canonicalForm is Canonical XML without comments. The library's 1.0 form is used because it alone takes the namespaces
// of the ancestors along; 1.1 differs from it in attributes of the xml prefix only, and documents with those are refused.
func canonicalForm(e *etree.Element) ([]byte, error) {
	return dsig.MakeC14N10RecCanonicalizer().Canonicalize(e)
}

// verifyXML checks the enveloped signature of a manifest with the key of its certificates, and returns the canonical
// bytes that the signature digests. Only those bytes may be read for content: the document around them may say anything,
// which is how signature wrapping works. Nothing is chosen by the document: one signature, at the root, over the whole
// document without itself, with fixed algorithms.
func verifyXML(doc []byte, signer chain) (signed []byte, err error) {
	tree := etree.NewDocument()
	if err := tree.ReadFromBytes(doc); err != nil {
		return nil, fmt.Errorf("reading XML: %w", err)
	}
	root := tree.Root()
	if root == nil {
		return nil, errors.New("document has no root")
	}
	if err := refuseXMLAttributes(root); err != nil {
		return nil, err
	}
	signature, err := onlyChild(root, "Signature")
	if err != nil {
		return nil, err
	}
	info, err := onlyChild(signature, "SignedInfo")
	if err != nil {
		return nil, err
	}
	digest, err := signedDigest(info)
	if err != nil {
		return nil, err
	}
	if err := checkInfo(signature, info, signer); err != nil {
		return nil, err
	}
	root.RemoveChild(signature)
	if signed, err = canonicalForm(root); err != nil {
		return nil, fmt.Errorf("canonicalising the document: %w", err)
	}
	if got := sha512.Sum384(signed); !bytes.Equal(got[:], digest) {
		return nil, fmt.Errorf("document has the digest %x, its signature is for %x", got, digest)
	}
	return signed, nil
}

// checkInfo checks the signature over SignedInfo.
func checkInfo(signature, info *etree.Element, signer chain) error {
	value, err := onlyChild(signature, "SignatureValue")
	if err != nil {
		return err
	}
	raw, err := decodeText(value, nvgpu.SignatureSize)
	if err != nil {
		return err
	}
	canonical, err := canonicalForm(info)
	if err != nil {
		return fmt.Errorf("canonicalising SignedInfo: %w", err)
	}
	key, err := signer.key()
	if err != nil {
		return err
	}
	digest := sha512.Sum384(canonical)
	if !verifyRaw(key, digest[:], raw) {
		return fmt.Errorf("signature is not that of %q", signer.leaf().Subject)
	}
	return nil
}

// signedDigest reads SignedInfo, which must have the one form known, and returns the digest of the document.
func signedDigest(info *etree.Element) ([]byte, error) {
	parts, err := sequence(info, "CanonicalizationMethod", "SignatureMethod", "Reference")
	if err != nil {
		return nil, err
	}
	reference := parts[2]
	if uri := reference.SelectAttr("URI"); uri == nil || uri.Value != "" || len(reference.Attr) != 1 {
		return nil, errors.New("signature is not over the whole document (Reference must have an empty URI alone)")
	}
	inner, err := sequence(reference, "Transforms", "DigestMethod", "DigestValue")
	if err != nil {
		return nil, err
	}
	transforms, err := sequence(inner[0], "Transform", "Transform")
	if err != nil {
		return nil, err
	}
	for _, c := range []struct {
		e    *etree.Element
		want string
	}{
		{parts[0], algC14N11}, {parts[1], algECDSA384}, {transforms[0], algEnveloped}, {transforms[1], algC14N11}, {inner[1], algSHA384},
	} {
		if got := c.e.SelectAttrValue("Algorithm", ""); got != c.want || len(c.e.Attr) != 1 || len(c.e.ChildElements()) != 0 {
			return nil, fmt.Errorf("%s is %.80q, want %q without parameters", c.e.Tag, got, c.want)
		}
	}
	return decodeText(inner[2], sha512.Size384)
}

// sequence returns the children of an element, which must be those named.
func sequence(e *etree.Element, names ...string) ([]*etree.Element, error) {
	children := e.ChildElements()
	if len(children) != len(names) {
		return nil, fmt.Errorf("%s has %d elements, want %s", e.Tag, len(children), strings.Join(names, ", "))
	}
	for i, c := range children {
		if c.Tag != names[i] || c.NamespaceURI() != nsDSig {
			return nil, fmt.Errorf("%s has <%.40s> where <%s> belongs", e.Tag, c.Tag, names[i])
		}
	}
	return children, nil
}

func onlyChild(e *etree.Element, name string) (*etree.Element, error) {
	var out *etree.Element
	for _, c := range e.ChildElements() {
		if c.Tag != name || c.NamespaceURI() != nsDSig {
			continue
		}
		if out != nil {
			return nil, fmt.Errorf("<%s> has more than one <%s>", e.Tag, name)
		}
		out = c
	}
	if out == nil {
		return nil, fmt.Errorf("<%s> has no <%s>", e.Tag, name)
	}
	return out, nil
}

func decodeText(e *etree.Element, size int) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(e.Text()), ""))
	if err != nil {
		return nil, fmt.Errorf("%s is not base64: %w", e.Tag, err)
	}
	if len(b) != size {
		return nil, fmt.Errorf("%s has %d bytes, want %d", e.Tag, len(b), size)
	}
	return b, nil
}

func refuseXMLAttributes(e *etree.Element) error {
	for _, a := range e.Attr {
		if a.Space == "xml" {
			return fmt.Errorf("<%s> has the attribute xml:%s, which no manifest needs", e.Tag, a.Key)
		}
	}
	for _, c := range e.ChildElements() {
		if err := refuseXMLAttributes(c); err != nil {
			return err
		}
	}
	return nil
}

// signedContent reads a manifest whose signature is that of its certificates. Whether those lead to NVIDIA is checked
// apart, so that the two outcomes can be told apart.
func signedContent(doc []byte, signer chain) (*rim.Content, error) {
	signed, err := verifyXML(doc, signer)
	if err != nil {
		return nil, err
	}
	return rim.ParseContent(signed)
}
