// Package quote reads Intel quotes: SGX version 3, TDX version 4, and version 5 of both, with their signature data and the
// Intel extension of PCK certificates (evidence-layouts.md section 2).
//
// It only takes bytes apart. Nothing in a parsed quote is true before broker/verifier/dcap has checked its signatures.
// The parser takes hostile bytes: sizes are checked against what is left, nothing is allocated from a length that was read,
// and slices in the result point into the input. Integers are little-endian.
package quote

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// MaxSize bounds the quotes Parse accepts. Real ones have about 5 kB, a few are padded to 8.
const MaxSize = 64 << 10

// Sizes in bytes.
const (
	headerSize    = 48
	EnclaveSize   = 384
	TD10Size      = 584
	TD15Size      = 648
	signatureSize = 64
	keySize       = 64
)

// TEE is the kind of environment a quote is about.
type TEE uint32

// Kinds of environment.
const (
	SGX TEE = 0x00
	TDX TEE = 0x81
)

// String names the kind.
func (t TEE) String() string {
	switch t {
	case SGX:
		return "SGX"
	case TDX:
		return "TDX"
	}
	return fmt.Sprintf("0x%08x", uint32(t))
}

// Body types of version 5.
const (
	BodySGX  = 1
	BodyTD10 = 2
	BodyTD15 = 3
)

const (
	keyP256     = 2 // attestation key type: ECDSA with P-256 and SHA-256
	intelVendor = "939a7233f79c4ca9940a0db3957f0607"
)

// Header is the first 48 bytes of a quote, field by field as they are stored.
type Header struct {
	Version    []byte // 2
	KeyType    []byte // 2
	TEEType    []byte // 4
	QESVN      []byte // 2, reserved in versions 4 and 5
	PCESVN     []byte // 2, reserved in versions 4 and 5
	VendorID   []byte // 16
	UserData   []byte // 20
	Reserved   []byte // 4: QESVN and PCESVN together, as versions 4 and 5 name them
	VersionNum uint16
}

// Quote is a parsed quote. Exactly one of Enclave and TD is set.
type Quote struct {
	Header Header
	TEE    TEE
	// BodyType and BodySize are the two fields before the body in version 5, as stored; nil in other versions.
	BodyType, BodySize []byte
	Enclave            *EnclaveReport
	TD                 *TDReport

	// Signed is what Signature is over: header, type and size if any, body.
	Signed    []byte
	Signature []byte // r ‖ s, big-endian
	// AttestationKey is x ‖ y, big-endian, of the key that made Signature.
	AttestationKey []byte
	// QEReport is the report by which the quoting enclave vouches for AttestationKey; QESignature is over its bytes.
	QEReport      EnclaveReport
	QESignature   []byte
	QEAuth        []byte
	Certification Certification
}

// Parse reads a quote. Bytes after its declared end are ignored: some producers pad.
func Parse(b []byte) (*Quote, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("parsing quote: %d bytes exceed the limit of %d", len(b), MaxSize)
	}
	q := new(Quote)
	r := &reader{buf: b}
	if err := q.header(r); err != nil {
		return nil, fmt.Errorf("parsing quote header: %w", err)
	}
	if err := q.body(r); err != nil {
		return nil, fmt.Errorf("parsing quote body: %w", err)
	}
	q.Signed = b[: len(b)-len(r.buf) : len(b)-len(r.buf)]
	data := r.take("signature data", r.u32("signature data size"))
	if r.err != nil {
		return nil, fmt.Errorf("parsing quote: %w", r.err)
	}
	if err := q.signatureData(data); err != nil {
		return nil, fmt.Errorf("parsing quote signature data: %w", err)
	}
	return q, nil
}

func (q *Quote) header(r *reader) error {
	raw := r.take("header", headerSize)
	if r.err != nil {
		return r.err
	}
	h := &reader{buf: raw}
	q.Header = Header{Version: raw[0:2], KeyType: raw[2:4], TEEType: raw[4:8], QESVN: raw[8:10], PCESVN: raw[10:12],
		Reserved: raw[8:12], VendorID: raw[12:28], UserData: raw[28:48]}
	q.Header.VersionNum = h.u16("version")
	keyType, tee := h.u16("key type"), TEE(h.u32("TEE type"))
	if v := q.Header.VersionNum; v < 3 || v > 5 {
		return fmt.Errorf("version is %d, expected 3, 4 or 5", v)
	}
	if keyType != keyP256 {
		return fmt.Errorf("attestation key type is %d, expected %d (ECDSA P-256)", keyType, keyP256)
	}
	if tee != SGX && tee != TDX {
		return fmt.Errorf("TEE type is %v, expected SGX (0) or TDX (0x81)", tee)
	}
	if q.Header.VersionNum == 3 && tee != SGX {
		return fmt.Errorf("TEE type is %v in a version 3 quote, expected SGX (0)", tee)
	}
	if got := hex.EncodeToString(q.Header.VendorID); got != intelVendor {
		return fmt.Errorf("quoting enclave vendor is %s, expected %s (Intel)", got, intelVendor)
	}
	q.TEE = tee
	return nil
}

func (q *Quote) body(r *reader) error {
	kind := uint16(BodySGX)
	if q.TEE == TDX {
		kind = BodyTD10
	}
	if q.Header.VersionNum == 5 {
		// The two fields are kept as bytes because claims show them so.
		q.BodyType = r.take("body type", 2)
		q.BodySize = r.take("body size", 4)
		if r.err != nil {
			return r.err
		}
		kind = binary.LittleEndian.Uint16(q.BodyType)
		if err := checkKind(q.TEE, kind, binary.LittleEndian.Uint32(q.BodySize)); err != nil {
			return err
		}
	}
	raw := r.take("body", bodySize(kind))
	if r.err != nil {
		return r.err
	}
	if kind == BodySGX {
		q.Enclave = newEnclaveReport(raw)
		return nil
	}
	q.TD = newTDReport(raw)
	return nil
}

// bodySize returns the size of a body type, 0 when it is unknown.
func bodySize(kind uint16) uint32 {
	switch kind {
	case BodySGX:
		return EnclaveSize
	case BodyTD10:
		return TD10Size
	case BodyTD15:
		return TD15Size
	}
	return 0
}

func checkKind(tee TEE, kind uint16, size uint32) error {
	want := bodySize(kind)
	switch {
	case want == 0:
		return fmt.Errorf("body type is %d, expected 1 (SGX), 2 (TD 1.0) or 3 (TD 1.5)", kind)
	case (kind == BodySGX) != (tee == SGX):
		return fmt.Errorf("body type is %d in a quote of TEE type %v", kind, tee)
	case size != want:
		return fmt.Errorf("body of type %d has size %d, expected %d", kind, size, want)
	}
	return nil
}
