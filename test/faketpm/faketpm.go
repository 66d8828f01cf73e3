// Package faketpm is a TPM 2.0 in software for tests: real keys, real signatures, real credential activation, no device.
//
// Its quotes verify like those of hardware; what makes it fake is only that anybody can make one, with a maker's
// authority (Root) of its own.
package faketpm

import (
	"crypto"
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/cloister/cloister/wire/kbs"
)

const pcrCount = 24

// TPM is one fake TPM.
type TPM struct {
	ak     *ecdsa.PrivateKey
	ek     *rsa.PrivateKey
	akArea tpm2.TPMTPublic
	ekArea tpm2.TPMTPublic
	ekCert []byte
	root   []byte

	pcrs [pcrCount][]byte
	log  []byte
}

// New makes a TPM with an endorsement certificate that is good around now.
func New(now time.Time) (*TPM, error) {
	t := &TPM{log: header()}
	for i := range t.pcrs {
		t.pcrs[i] = make([]byte, sha256.Size)
		if i >= 17 && i <= 22 {
			for j := range t.pcrs[i] {
				t.pcrs[i][j] = 0xff
			}
		}
	}
	var err error
	if t.ak, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if t.ek, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	point, err := t.ak.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	t.akArea = tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:65]},
		}),
	}
	t.ekArea = tpm2.RSAEKTemplate
	t.ekArea.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: t.ek.N.Bytes()})
	return t, t.certify(now)
}

// certify makes the maker's root and the endorsement certificate, with the critical alternative name real ones have.
func (t *TPM) certify(now time.Time) error {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Fake TPM Maker"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	if err != nil {
		return err
	}
	t.root = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	model, err := asn1.Marshal(pkix.Name{CommonName: "id:FFFFF1D0"}.ToRDNSequence())
	if err != nil {
		return err
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: model}})
	if err != nil {
		return err
	}
	ek := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageKeyEncipherment, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}},
	}
	t.ekCert, err = x509.CreateCertificate(rand.Reader, ek, root, &t.ek.PublicKey, rootKey)
	return err
}

// Root is the PEM certificate of the maker.
func (t *TPM) Root() []byte { return t.root }

// Enrol announces the keys of the TPM.
func (t *TPM) Enrol() kbs.TPMEnrol {
	return kbs.TPMEnrol{AKPublic: tpm2.Marshal(t.akArea), EKPublic: tpm2.Marshal(t.ekArea), EKCertificate: t.ekCert}
}

// Unrestricted announces an attestation key that signs anything, which no broker may accept.
func (t *TPM) Unrestricted() kbs.TPMEnrol {
	e, area := t.Enrol(), t.akArea
	area.ObjectAttributes.Restricted = false
	e.AKPublic = tpm2.Marshal(area)
	return e
}

// AKPublic is the attestation key as evidence carries it.
func (t *TPM) AKPublic() (string, error) {
	der, err := x509.MarshalPKIXPublicKey(&t.ak.PublicKey)
	return base64.StdEncoding.EncodeToString(der), err
}

// Extend extends a register without leaving a trace in the event log.
func (t *TPM) Extend(pcr int, digest []byte) {
	sum := sha256.Sum256(append(append([]byte{}, t.pcrs[pcr]...), digest...))
	t.pcrs[pcr] = sum[:]
}

// Measure extends a register with the hash of data and writes the event to the log.
func (t *TPM) Measure(pcr int, data []byte) {
	const actionEvent = 5
	sum := sha256.Sum256(data)
	t.Extend(pcr, sum[:])
	t.log = append(t.log, le32(uint32(pcr), actionEvent, 1)...)
	t.log = append(t.log, 0x0b, 0)
	t.log = append(t.log, sum[:]...)
	t.log = append(t.log, le32(uint32(len(data)))...)
	t.log = append(t.log, data...)
}

// PCR is the value of a register in hex.
func (t *TPM) PCR(i int) string { return hex.EncodeToString(t.pcrs[i]) }

// header is the first record of a crypto-agile log with one SHA-256 bank.
func header() []byte {
	spec := append([]byte("Spec ID Event03\x00"), le32(0)...)
	spec = append(spec, 0, 2, 0, 2)
	spec = append(spec, le32(1)...)
	spec = append(spec, 0x0b, 0, sha256.Size, 0, 0)
	out := le32(0, 3)
	out = append(out, make([]byte, 20)...)
	out = append(out, le32(uint32(len(spec)))...)
	return append(out, spec...)
}

func le32(vs ...uint32) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// Evidence quotes all registers over extra.
func (t *TPM) Evidence(extra []byte) (kbs.TPMEvidence, error) {
	return t.EvidenceOver(extra, []byte{0xff, 0xff, 0xff})
}

// EvidenceOver quotes the registers of a selection bitmap over extra.
func (t *TPM) EvidenceOver(extra, bitmap []byte) (kbs.TPMEvidence, error) {
	h := sha256.New()
	for i, v := range t.pcrs {
		if bitmap[i/8]>>(i%8)&1 == 1 {
			h.Write(v)
		}
	}
	name, err := tpm2.ObjectName(&t.akArea)
	if err != nil {
		return kbs.TPMEvidence{}, err
	}
	be := binary.BigEndian
	msg := []byte{0xff, 'T', 'C', 'G', 0x80, 0x18}
	msg = append(be.AppendUint16(msg, uint16(len(name.Buffer))), name.Buffer...)
	msg = append(be.AppendUint16(msg, uint16(len(extra))), extra...)
	msg = append(msg, make([]byte, 16)...)
	msg = append(msg, 1)
	msg = append(msg, make([]byte, 8)...)
	msg = be.AppendUint32(msg, 1)
	msg = append(msg, 0, 0x0b, byte(len(bitmap)))
	msg = append(msg, bitmap...)
	digest := h.Sum(nil)
	msg = append(be.AppendUint16(msg, uint16(len(digest))), digest...)

	sum := sha256.Sum256(msg)
	r, s, err := ecdsa.Sign(rand.Reader, t.ak, sum[:])
	if err != nil {
		return kbs.TPMEvidence{}, err
	}
	sig := []byte{0, 0x18, 0, 0x0b}
	for _, v := range []*big.Int{r, s} {
		sig = append(be.AppendUint16(sig, 32), v.FillBytes(make([]byte, 32))...)
	}
	ak, err := t.AKPublic()
	if err != nil {
		return kbs.TPMEvidence{}, err
	}
	e := kbs.TPMEvidence{AKPublic: ak, EventLog: base64.StdEncoding.EncodeToString(t.log)}
	e.TPMQuote.Message = base64.StdEncoding.EncodeToString(msg)
	e.TPMQuote.Signature = base64.StdEncoding.EncodeToString(sig)
	for i := range t.pcrs {
		e.TPMQuote.PCRs = append(e.TPMQuote.PCRs, t.PCR(i))
	}
	return e, nil
}

// Activate does what TPM2_ActivateCredential does: it recovers the secret of a credential made for this TPM's keys.
func (t *TPM) Activate(c kbs.TPMCredential) ([]byte, error) {
	seed, err := rsa.DecryptOAEP(sha256.New(), nil, t.ek, c.EncryptedSecret, []byte("IDENTITY\x00"))
	if err != nil {
		return nil, fmt.Errorf("opening the seed: %w", err)
	}
	name, err := tpm2.ObjectName(&t.akArea)
	if err != nil {
		return nil, err
	}
	if len(c.CredentialBlob) < 2+sha256.Size {
		return nil, errors.New("credential is too short")
	}
	tag, sealed := c.CredentialBlob[2:2+sha256.Size], c.CredentialBlob[2+sha256.Size:]
	mac := hmac.New(sha256.New, tpm2.KDFa(crypto.SHA256, seed, "INTEGRITY", nil, nil, 256))
	mac.Write(sealed)
	mac.Write(name.Buffer)
	if !hmac.Equal(mac.Sum(nil), tag) {
		return nil, errors.New("credential is for another key")
	}
	block, err := aes.NewCipher(tpm2.KDFa(crypto.SHA256, seed, "STORAGE", name.Buffer, nil, 128))
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(sealed))
	for stream, i := make([]byte, aes.BlockSize), 0; i < len(sealed); i++ { // AES-CFB, zero IV
		if i%aes.BlockSize == 0 {
			block.Encrypt(stream, stream)
		}
		plain[i] = sealed[i] ^ stream[i%aes.BlockSize]
		stream[i%aes.BlockSize] = sealed[i]
	}
	if len(plain) < 2 || int(binary.BigEndian.Uint16(plain)) != len(plain)-2 {
		return nil, errors.New("credential has a wrong inner length")
	}
	return plain[2:], nil
}
