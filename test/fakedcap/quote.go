package fakedcap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/cloister/cloister/tee/quote"
)

// Spec says what a quote is made of. The zero value with a body is a good quote of the world's platform.
type Spec struct {
	Version uint16 // 3, 4 or 5; by default 3 for SGX, 4 for TD 1.0 and 5 for TD 1.5
	Body    []byte // of 384, 584 or 648 bytes
	// EditQE may change the quoting enclave's report before it is signed.
	EditQE func(report []byte)
	// Chain replaces the PEM chain, CertType its type.
	Chain    []byte
	CertType uint16
}

// TD is a TD 1.0 body of the platform with the given report data.
func TD(reportData []byte) []byte {
	b := make([]byte, quote.TD10Size)
	copy(b, TCBSVN[:])
	b[120+3] = 0x10 // SEPT_VE_DISABLE
	for i := 136; i < 184; i++ {
		b[i] = 0xAB // MRTD
	}
	copy(b[520:584], reportData)
	return b
}

// TD15 is a TD 1.5 body, launched on the TCB that the platform has now.
func TD15(reportData []byte) []byte {
	b := append(TD(reportData), make([]byte, quote.TD15Size-quote.TD10Size)...)
	copy(b[584:], TCBSVN[:])
	return b
}

// Enclave is an SGX body with the given report data.
func Enclave(reportData []byte) []byte {
	b := make([]byte, quote.EnclaveSize)
	copy(b, Components[:])
	b[48] = 0x05
	copy(b[64:96], bytes.Repeat([]byte{0xEE}, 32))
	copy(b[320:384], reportData)
	return b
}

// Quote signs a quote.
func (w *World) Quote(s Spec) []byte {
	w.t.Helper()
	kind, tee := uint16(quote.BodySGX), uint32(quote.SGX)
	switch len(s.Body) {
	case quote.TD10Size:
		kind, tee = quote.BodyTD10, uint32(quote.TDX)
	case quote.TD15Size:
		kind, tee = quote.BodyTD15, uint32(quote.TDX)
	}
	if s.Version == 0 {
		s.Version = map[uint16]uint16{quote.BodySGX: 3, quote.BodyTD10: 4, quote.BodyTD15: 5}[kind]
	}
	le := binary.LittleEndian
	vendor, err := hex.DecodeString("939a7233f79c4ca9940a0db3957f0607")
	w.must(err)
	b := le.AppendUint16(nil, s.Version)
	b = le.AppendUint16(b, 2)
	b = le.AppendUint32(b, tee)
	b = append(append(append(b, 0, 0, 0, 0), vendor...), make([]byte, 20)...)
	if s.Version == 5 {
		b = le.AppendUint16(b, kind)
		b = le.AppendUint32(b, uint32(len(s.Body)))
	}
	b = append(b, s.Body...)
	data := w.signatureData(b, s)
	return append(le.AppendUint32(b, uint32(len(data))), data...)
}

func (w *World) signatureData(signed []byte, s Spec) []byte {
	w.t.Helper()
	le := binary.LittleEndian
	ak, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	point, err := ak.PublicKey.Bytes()
	w.must(err)
	auth := []byte("0123456789abcdef0123456789abcdef")
	binding := sha256.Sum256(append(bytes.Clone(point[1:]), auth...))
	report := make([]byte, quote.EnclaveSize)
	report[48] = 0x15
	copy(report[128:160], qeSigner)
	le.PutUint16(report[256:], 2)
	le.PutUint16(report[258:], QESVN)
	copy(report[320:], binding[:])
	if s.EditQE != nil {
		s.EditQE(report)
	}
	if s.Chain == nil {
		s.Chain = append(bytes.Join([][]byte{w.PCK.PEM(), w.CA.PEM(), w.Root.PEM()}, nil), 0)
	}
	if s.CertType == 0 {
		s.CertType = 5
	}
	inner := append(bytes.Clone(report), w.sign(w.PCK, report)...)
	inner = le.AppendUint16(inner, uint16(len(auth)))
	inner = append(inner, auth...)
	inner = le.AppendUint16(inner, s.CertType)
	inner = append(le.AppendUint32(inner, uint32(len(s.Chain))), s.Chain...)
	out := append(w.sign(&Cert{Key: ak}, signed), point[1:]...)
	if s.Version == 3 {
		return append(out, inner...)
	}
	out = le.AppendUint16(out, 6)
	return append(le.AppendUint32(out, uint32(len(inner))), inner...)
}

// sign makes r ‖ s over the SHA-256 of message.
func (w *World) sign(by *Cert, message []byte) []byte {
	w.t.Helper()
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, by.Key, digest[:])
	w.must(err)
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out
}
