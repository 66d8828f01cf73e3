package csv

import (
	"crypto/ecdsa"
	"crypto/sha256"
	_ "embed" // the root certificate
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"

	"github.com/emmansun/gmsm/sm2"

	"github.com/cloister/cloister/tee/csv"
)

//go:embed roots/hrk.pem
var hrkPEM []byte

// hrkSHA256 is the digest of Hygon's root certificate, published at https://cert.hygon.cn/hrk.
const hrkSHA256 = "296efa97580464aca0ab5eefe42199ee05862182508d1629f29cf4dc175b10cd"

// HygonRoot is Hygon's root certificate, in its binary form of 832 bytes.
func HygonRoot() ([]byte, error) {
	block, _ := pem.Decode(hrkPEM)
	if block == nil {
		return nil, errors.New("the embedded Hygon root is not PEM")
	}
	if sum := sha256.Sum256(block.Bytes); hex.EncodeToString(sum[:]) != hrkSHA256 {
		return nil, fmt.Errorf("the embedded Hygon root has SHA-256 %x, expected %s", sum, hrkSHA256)
	}
	return block.Bytes, nil
}

// CheckChipKey verifies a hsk_cek file up to a root (HRK → HSK → CEK) and returns the certificate of the chip. A nil root
// is Hygon's. Hygon's certificates have no dates, and Hygon publishes no revocation lists.
func CheckChipKey(root, chain []byte) (*csv.Cert, error) {
	if root == nil {
		var err error
		if root, err = HygonRoot(); err != nil {
			return nil, err
		}
	}
	hrk, err := csv.ParseRootCert(root)
	if err != nil {
		return nil, fmt.Errorf("reading HRK: %w", err)
	}
	if err := checkRootCert(hrk, hrk, csv.UsageHRK); err != nil {
		return nil, fmt.Errorf("HRK: %w", err)
	}
	hsk, cek, err := csv.ParseChain(chain)
	if err != nil {
		return nil, err
	}
	if err := checkRootCert(hrk, hsk, csv.UsageHSK); err != nil {
		return nil, fmt.Errorf("HSK: %w", err)
	}
	if err := checkCert(hsk.Key, csv.UsageHSK, cek, csv.UsageCEK); err != nil {
		return nil, fmt.Errorf("CEK: %w", err)
	}
	return cek, nil
}

// checkRootCert verifies a certificate that the root signed, its own included.
func checkRootCert(root, c *csv.RootCert, usage csv.Usage) error {
	if c.Usage != usage {
		return fmt.Errorf("key usage = %v, expected %v", c.Usage, usage)
	}
	if c.SignerID != root.KeyID {
		return fmt.Errorf("signer id = %x, expected %x, the root's key id", c.SignerID, root.KeyID)
	}
	return CheckSignature(root.Key, c.Signed, c.Signature)
}

// checkCert verifies the one signature of c that is by the signer wanted. A platform key has a second one, of the owner
// of the machine, who is nobody to us.
func checkCert(key csv.PublicKey, signer csv.Usage, c *csv.Cert, usage csv.Usage) error {
	if c.Usage != usage {
		return fmt.Errorf("key usage = %v, expected %v", c.Usage, usage)
	}
	if c.Algorithm != csv.AlgSM2 {
		return fmt.Errorf("key algorithm = %d, expected %d (SM2)", c.Algorithm, csv.AlgSM2)
	}
	for _, s := range c.Signatures {
		if s.Signer == signer && s.Algorithm == csv.AlgSM2 {
			return CheckSignature(key, c.Signed, s.Signature)
		}
	}
	return fmt.Errorf("no signature by %v, the two are by %v and %v", signer, c.Signatures[0].Signer, c.Signatures[1].Signer)
}

// CheckSignature verifies SM2 with SM3, with the user id of the signer's certificate.
func CheckSignature(key csv.PublicKey, message []byte, s csv.Signature) error {
	pub, err := publicKey(key)
	if err != nil {
		return err
	}
	hash, err := sm2.CalculateSM2Hash(pub, message, key.UserID)
	if err != nil {
		return fmt.Errorf("hashing for SM2: %w", err)
	}
	if !sm2.Verify(pub, hash, new(big.Int).SetBytes(s.R[:]), new(big.Int).SetBytes(s.S[:])) {
		return fmt.Errorf("the SM2 signature is not by the key of %.32q", key.UserID)
	}
	return nil
}

func publicKey(key csv.PublicKey) (*ecdsa.PublicKey, error) {
	if len(key.UserID) == 0 {
		return nil, errors.New("the signer's certificate has no user id") // the library would put a default in its place
	}
	point := append([]byte{4}, key.X[:]...)
	pub, err := sm2.NewPublicKey(append(point, key.Y[:]...)) // refuses points off the curve
	if err != nil {
		return nil, fmt.Errorf("key of %.32q: %w", key.UserID, err)
	}
	return pub, nil
}
