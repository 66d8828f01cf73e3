package fragment

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
)

// Header is what a signer says of a fragment.
type Header struct {
	Issuer string
	Feed   string
	SVN    uint64
	Chain  []*x509.Certificate // the signer's first
}

// Sign makes a fragment of a Rego module. Issuer and feed stand in the header twice, as claims (RFC 9597) and under the names that
// older guests read.
func Sign(h Header, payload []byte, key crypto.Signer) ([]byte, error) {
	raw, err := sign(h, payload, key)
	if err != nil {
		return nil, fmt.Errorf("signing a policy fragment: %w", err)
	}
	return raw, nil
}

func sign(h Header, payload []byte, key crypto.Signer) ([]byte, error) {
	if len(h.Chain) == 0 {
		return nil, errors.New("there is no certificate")
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(h.Chain[0].PublicKey) {
		return nil, errors.New("the key is not that of the first certificate")
	}
	alg, err := algorithmOf(key.Public())
	if err != nil {
		return nil, err
	}
	// The order of the labels is that of deterministic encoding: by their encoded bytes.
	b := appendHead(nil, majorMap, 6)
	b = appendInt(appendInt(b, labelAlgorithm), int64(alg))
	b = appendText(appendInt(b, labelContentType), ContentType)
	b = appendHead(appendInt(b, labelCWT), majorMap, 3)
	b = appendText(appendInt(b, claimIssuer), h.Issuer)
	b = appendText(appendInt(b, claimSubject), h.Feed)
	b = appendHead(appendText(b, claimSVN), majorUint, h.SVN)
	b = appendHead(appendInt(b, labelX5Chain), majorArray, uint64(len(h.Chain)))
	for _, c := range h.Chain {
		b = appendBytes(b, c.Raw)
	}
	b = appendText(appendText(b, "iss"), h.Issuer)
	b = appendText(appendText(b, "feed"), h.Feed)
	signature, err := signature(key, alg, toBeSigned(b, payload))
	if err != nil {
		return nil, err
	}
	raw := appendHead(appendHead(nil, majorTag, 18), majorArray, 4)
	raw = appendHead(appendBytes(raw, b), majorMap, 0)
	raw = appendBytes(appendBytes(raw, payload), signature)
	if _, err := parse(raw); err != nil { // what nobody would read is not written
		return nil, err
	}
	return raw, nil
}

func algorithmOf(key crypto.PublicKey) (Algorithm, error) {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve.Params().BitSize {
		case 256:
			return ES256, nil
		case 384:
			return ES384, nil
		case 521:
			return ES512, nil
		}
	case *rsa.PublicKey:
		if key.N.BitLen() >= minRSABits {
			return PS256, nil
		}
	case ed25519.PublicKey:
		return EdDSA, nil
	}
	return 0, fmt.Errorf("a key of type %T or of its size cannot sign fragments", key)
}

func signature(key crypto.Signer, alg Algorithm, message []byte) ([]byte, error) {
	hash, kind, err := alg.needs()
	if err != nil {
		return nil, err
	}
	if kind == kindEd25519 {
		return key.Sign(rand.Reader, message, crypto.Hash(0))
	}
	sum := digest(hash, message)
	ec, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return key.Sign(rand.Reader, sum, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash})
	}
	der, err := key.Sign(rand.Reader, sum, hash)
	if err != nil {
		return nil, err
	}
	var rs struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(der, &rs); err != nil || len(rest) > 0 {
		return nil, errors.New("the key made a signature that cannot be read")
	}
	size := (ec.Curve.Params().BitSize + 7) / 8
	if rs.R.Sign() < 0 || rs.S.Sign() < 0 || rs.R.BitLen() > 8*size || rs.S.BitLen() > 8*size {
		return nil, errors.New("the key made a signature that is none of its curve")
	}
	out := make([]byte, 2*size)
	rs.R.FillBytes(out[:size])
	rs.S.FillBytes(out[size:])
	return out, nil
}
