// Package xmlsig verifies the one form of XML signature that manifests of reference values have.
//
// There is one signature, at the root, over all of the document but itself, with ECDSA on P-384 and SHA-384. The document chooses
// nothing, and only the bytes that the signature digests may be read for content: the rest may say anything, which is how
// signature wrapping works.
package xmlsig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"
)

// Names of the one form of signature that manifests have.
const (
	Namespace = "http://www.w3.org/2000/09/xmldsig#"
	C14N11    = "http://www.w3.org/2006/12/xml-c14n11"
	Enveloped = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
	ECDSA384  = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
	SHA384    = "http://www.w3.org/2001/04/xmldsig-more#sha384"

	SignatureSize = 96 // r and s
)

// Verify checks the enveloped signature of a manifest (evidence-layouts.md section 9) with a key and returns the canonical bytes
// that it is over. who names the key in errors.
func Verify(doc []byte, key crypto.PublicKey, who string) ([]byte, error) {
	public, ok := key.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P384() {
		return nil, fmt.Errorf("key of %s is not on P-384, which manifests are signed with", who)
	}
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
	signature, err := only(root, "Signature")
	if err != nil {
		return nil, err
	}
	info, err := only(signature, "SignedInfo")
	if err != nil {
		return nil, err
	}
	digest, err := signedDigest(info)
	if err != nil {
		return nil, err
	}
	value, err := only(signature, "SignatureValue")
	if err != nil {
		return nil, err
	}
	raw, err := decoded(value, SignatureSize)
	if err != nil {
		return nil, err
	}
	canonical, err := Canonical(info)
	if err != nil {
		return nil, fmt.Errorf("canonicalising SignedInfo: %w", err)
	}
	sum := sha512.Sum384(canonical)
	if r, s := new(big.Int).SetBytes(raw[:SignatureSize/2]), new(big.Int).SetBytes(raw[SignatureSize/2:]); !ecdsa.Verify(public, sum[:], r, s) {
		return nil, fmt.Errorf("signature is not that of %s", who)
	}
	root.RemoveChild(signature)
	signed, err := Canonical(root)
	if err != nil {
		return nil, fmt.Errorf("canonicalising the document: %w", err)
	}
	if got := sha512.Sum384(signed); !bytes.Equal(got[:], digest) {
		return nil, fmt.Errorf("document has the digest %x, its signature is for %x", got, digest)
	}
	return signed, nil
}

// Canonical is Canonical XML without comments. The library's 1.0 form is used because it alone takes the namespaces of the
// ancestors along; 1.1 differs from it in attributes of the xml prefix only, and documents with those are refused.
func Canonical(e *etree.Element) ([]byte, error) {
	return dsig.MakeC14N10RecCanonicalizer().Canonicalize(e)
}

// signedDigest reads SignedInfo, which has to have the one form known, and returns the document's digest in it.
func signedDigest(info *etree.Element) ([]byte, error) {
	top, err := sequence(info, "CanonicalizationMethod", "SignatureMethod", "Reference")
	if err != nil {
		return nil, err
	}
	if uri := top[2].SelectAttr("URI"); uri == nil || uri.Value != "" || len(top[2].Attr) != 1 {
		return nil, errors.New("signature is not over the whole document (Reference must have an empty URI alone)")
	}
	ref, err := sequence(top[2], "Transforms", "DigestMethod", "DigestValue")
	if err != nil {
		return nil, err
	}
	transforms, err := sequence(ref[0], "Transform", "Transform")
	if err != nil {
		return nil, err
	}
	elements := []*etree.Element{top[0], top[1], transforms[0], transforms[1], ref[1]}
	for i, want := range []string{C14N11, ECDSA384, Enveloped, C14N11, SHA384} {
		e := elements[i]
		if got := e.SelectAttrValue("Algorithm", ""); got != want || len(e.Attr) != 1 || len(e.ChildElements()) != 0 {
			return nil, fmt.Errorf("%s is %.80q, want %q without parameters", e.Tag, got, want)
		}
	}
	return decoded(ref[2], sha512.Size384)
}

func sequence(e *etree.Element, names ...string) ([]*etree.Element, error) {
	children := e.ChildElements()
	if len(children) != len(names) {
		return nil, fmt.Errorf("%s has %d elements, want %s", e.Tag, len(children), strings.Join(names, ", "))
	}
	for i, c := range children {
		if c.Tag != names[i] || c.NamespaceURI() != Namespace {
			return nil, fmt.Errorf("%s has <%.40s> where <%s> belongs", e.Tag, c.Tag, names[i])
		}
	}
	return children, nil
}

func only(e *etree.Element, name string) (*etree.Element, error) {
	var out *etree.Element
	for _, c := range e.ChildElements() {
		if c.Tag != name || c.NamespaceURI() != Namespace {
			continue
		}
		if out != nil {
			return nil, fmt.Errorf("<%.40s> has more than one <%s>", e.Tag, name)
		}
		out = c
	}
	if out == nil {
		return nil, fmt.Errorf("<%.40s> has no <%s>", e.Tag, name)
	}
	return out, nil
}

func decoded(e *etree.Element, size int) ([]byte, error) {
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
			return fmt.Errorf("<%.40s> has the attribute xml:%.40s, which no manifest needs", e.Tag, a.Key)
		}
	}
	for _, c := range e.ChildElements() {
		if err := refuseXMLAttributes(c); err != nil {
			return err
		}
	}
	return nil
}
