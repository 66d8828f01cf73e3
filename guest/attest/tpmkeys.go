package attest

import (
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/cloister/cloister/tee/tpm"
)

const (
	akHandle    = tpm2.TPMHandle(0x81010002) // where upstream's attestation agent looks for it
	ekHandle    = tpm2.TPMHandle(0x81010001) // where manufacturers keep the RSA endorsement key
	ekCertIndex = tpm2.TPMHandle(0x01C00002) // RSA-2048 endorsement certificate
	maxEKCert   = 4096
	nvChunk     = 512 // every TPM can read this much at once
)

// akTemplate describes the attestation key: RSA-2048, signs with RSASSA and
// SHA-256, and only what the TPM made itself (restricted). A primary key of the
// endorsement hierarchy, so the same TPM always derives the same key.
func akTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgRSA,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTRSAScheme{
				Scheme:  tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			KeyBits: 2048,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: make([]byte, 256)}),
	}
}

// key is an object in the TPM.
type key struct {
	handle    tpm2.TPMHandle
	name      tpm2.TPM2BName
	public    *tpm.Public
	transient bool
}

func (k *key) flush(dev transport.TPM) {
	if k.transient {
		_, _ = tpm2.FlushContext{FlushHandle: k.handle}.Execute(dev) // the TPM drops it at the latest on reset
	}
}

type attestationKey struct{ key }

type endorsementKey struct {
	key
	certificate []byte // DER, nil when the TPM has none
}

// loadAK finds or makes the attestation key. The caller holds the lock.
func (t *TPM) loadAK() (*attestationKey, error) {
	if t.ak != nil {
		return t.ak, nil
	}
	if k, err := readKey(t.dev, akHandle); err == nil && checkAK(k.public) == nil {
		t.ak = &attestationKey{*k}
		return t.ak, nil
	}
	k, err := createPrimary(t.dev, akTemplate())
	if err != nil {
		return nil, fmt.Errorf("making the attestation key: %w", err)
	}
	if err := checkAK(k.public); err != nil {
		k.flush(t.dev)
		return nil, fmt.Errorf("making the attestation key: %w", err)
	}
	// Keeping it at its well-known handle saves making it again and lets other
	// tools find it. Where the handle is taken or not ours, the loaded key serves.
	_, err = tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: k.handle, Name: k.name},
		PersistentHandle: akHandle,
	}.Execute(t.dev)
	if err == nil {
		k.flush(t.dev)
		k.handle, k.transient = akHandle, false
	}
	t.ak = &attestationKey{*k}
	return t.ak, nil
}

// checkAK reports why a key is not one that akTemplate describes.
func checkAK(p *tpm.Public) error {
	if err := p.CheckAttestationKey(); err != nil {
		return err
	}
	if p.Type != tpm.AlgRSA || p.Scheme != (tpm.Scheme{Scheme: tpm.AlgRSASSA, Hash: tpm.AlgSHA256}) {
		return fmt.Errorf("key is %v with %v and %v, expected rsa with rsassa and sha256", p.Type, p.Scheme.Scheme, p.Scheme.Hash)
	}
	return nil
}

// loadEK finds or makes the endorsement key and reads its certificate. The
// caller holds the lock.
func (t *TPM) loadEK() (*endorsementKey, error) {
	if t.ek != nil {
		return t.ek, nil
	}
	k, err := readKey(t.dev, ekHandle)
	if err != nil || !isDefaultEK(k.public) {
		if k, err = createPrimary(t.dev, tpm2.RSAEKTemplate); err != nil {
			return nil, fmt.Errorf("making the endorsement key: %w", err)
		}
	}
	cert, err := readEKCertificate(t.dev)
	if err != nil {
		k.flush(t.dev)
		return nil, err
	}
	t.ek = &endorsementKey{*k, cert}
	return t.ek, nil
}

// isDefaultEK reports whether a key has the parameters of the TCG template.
func isDefaultEK(p *tpm.Public) bool {
	template := tpm2.Marshal(tpm2.RSAEKTemplate)
	fixed := len(template) - 256 // all but the modulus
	got := p.Bytes()
	return len(got) == len(template) && string(got[:fixed]) == string(template[:fixed])
}

func readKey(dev transport.TPM, handle tpm2.TPMHandle) (*key, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(dev)
	if err != nil {
		return nil, fmt.Errorf("reading key %08x: %w", uint32(handle), err)
	}
	public, err := tpm.ParsePublic(rsp.OutPublic.Bytes())
	if err != nil {
		return nil, fmt.Errorf("reading key %08x: %w", uint32(handle), err)
	}
	return &key{handle: handle, name: rsp.Name, public: public}, nil
}

func createPrimary(dev transport.TPM, template tpm2.TPMTPublic) (*key, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHEndorsement,
		InPublic:      tpm2.New2B(template),
	}.Execute(dev)
	if err != nil {
		return nil, err
	}
	k := &key{handle: rsp.ObjectHandle, name: rsp.Name, transient: true}
	if k.public, err = tpm.ParsePublic(rsp.OutPublic.Bytes()); err != nil {
		k.flush(dev)
		return nil, err
	}
	return k, nil
}

// readEKCertificate reads the certificate from its NV index, nil when the TPM
// has none.
func readEKCertificate(dev transport.TPM) ([]byte, error) {
	nv, err := tpm2.NVReadPublic{NVIndex: ekCertIndex}.Execute(dev)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the endorsement certificate: %w", err)
	}
	public, err := nv.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("reading the endorsement certificate: %w", err)
	}
	size := int(public.DataSize)
	if size > maxEKCert {
		return nil, fmt.Errorf("reading the endorsement certificate: NV index holds %d bytes, more than %d", size, maxEKCert)
	}
	der := make([]byte, 0, size)
	for len(der) < size {
		rsp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: ekCertIndex, Name: nv.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: ekCertIndex, Name: nv.NVName},
			Size:       uint16(min(nvChunk, size-len(der))),
			Offset:     uint16(len(der)),
		}.Execute(dev)
		if err != nil {
			return nil, fmt.Errorf("reading the endorsement certificate: %w", err)
		}
		if len(rsp.Data.Buffer) == 0 {
			return nil, errors.New("reading the endorsement certificate: NV index ended early")
		}
		der = append(der, rsp.Data.Buffer...)
	}
	// The index may be larger than the certificate in it.
	var cert asn1.RawValue
	if _, err := asn1.Unmarshal(der, &cert); err != nil {
		return nil, fmt.Errorf("reading the endorsement certificate: %w", err)
	}
	return cert.FullBytes, nil
}
