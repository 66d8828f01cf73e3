package se

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Flags are the plaintext attestation flags; the bit numbered 0 is the highest.
type Flags uint64

// What a request may ask for.
const (
	FlagNonce              Flags = 1 << (63 - 1)
	FlagImageHostKey       Flags = 1 << (63 - 2)
	FlagAttestationHostKey Flags = 1 << (63 - 3)
	FlagSecretStore        Flags = 1 << (63 - 4)
	FlagFirmwareState      Flags = 1 << (63 - 5)
)

// AdditionalSize is how many bytes of additional data the flags ask for.
func (f Flags) AdditionalSize() uint32 {
	n := uint32(0)
	for _, flag := range []Flags{FlagImageHostKey, FlagAttestationHostKey, FlagSecretStore, FlagFirmwareState} {
		if f&flag != 0 {
			n += HashSize
		}
	}
	return n
}

// Layout of a request and its parts, in bytes.
const (
	Version1       = 0x100
	HMACSHA512     = 1
	PublicKeySize  = 160 // two coordinates of 80
	KeySlotSize    = 80  // digest of the host key, wrapped key, tag
	GCMTagSize     = 16
	IVSize         = 12
	MaxKeySlots    = 255
	requestFixed   = 0xE0
	maxRequestSize = requestFixed + MaxKeySlots*KeySlotSize + MeasurementKeySize + NonceSize + GCMTagSize
)

// Request is an attestation request control block. What is encrypted in it is measurement key and nonce.
type Request struct {
	IV        [IVSize]byte
	Flags     Flags
	PublicKey [PublicKeySize]byte // of the requester
	KeySlots  [][KeySlotSize]byte
	Encrypted []byte
	Tag       [GCMTagSize]byte
}

// Authenticated is everything before the encrypted part, which the tag covers too.
func (r *Request) Authenticated(encryptedSize int) ([]byte, error) {
	n := len(r.KeySlots)
	if n == 0 || n > MaxKeySlots {
		return nil, fmt.Errorf("request with %d key slots, expected 1 to %d", n, MaxKeySlots)
	}
	be := binary.BigEndian
	b := make([]byte, requestFixed, requestFixed+n*KeySlotSize)
	be.PutUint32(b[8:], Version1)
	be.PutUint32(b[12:], uint32(requestFixed+n*KeySlotSize+encryptedSize+GCMTagSize))
	copy(b[0x10:], r.IV[:])
	b[0x27] = byte(n)
	be.PutUint32(b[0x2C:], uint32(encryptedSize))
	be.PutUint64(b[0x30:], uint64(r.Flags))
	be.PutUint32(b[0x38:], HMACSHA512)
	copy(b[0x40:], r.PublicKey[:])
	for _, s := range r.KeySlots {
		b = append(b, s[:]...)
	}
	return b, nil
}

// Bytes is the whole request.
func (r *Request) Bytes() ([]byte, error) {
	b, err := r.Authenticated(len(r.Encrypted))
	if err != nil {
		return nil, err
	}
	b = append(b, r.Encrypted...)
	return append(b, r.Tag[:]...), nil
}

// ParseRequest reads a request of version 1.
func ParseRequest(b []byte) (*Request, error) {
	if len(b) < requestFixed+KeySlotSize+GCMTagSize || len(b) > maxRequestSize {
		return nil, fmt.Errorf("parsing attestation request: %d bytes, expected %d to %d",
			len(b), requestFixed+KeySlotSize+GCMTagSize, maxRequestSize)
	}
	be := binary.BigEndian
	if v := be.Uint32(b[8:]); v != Version1 {
		return nil, fmt.Errorf("parsing attestation request: version %#x, expected %#x", v, Version1)
	}
	if n := be.Uint32(b[12:]); uint64(n) != uint64(len(b)) {
		return nil, fmt.Errorf("parsing attestation request: its size says %d, there are %d bytes", n, len(b))
	}
	if alg := be.Uint32(b[0x38:]); alg != HMACSHA512 {
		return nil, fmt.Errorf("parsing attestation request: measurement algorithm %d, expected %d", alg, HMACSHA512)
	}
	slots, encrypted := int(b[0x27]), be.Uint32(b[0x2C:])
	if slots == 0 || uint64(requestFixed+slots*KeySlotSize+GCMTagSize)+uint64(encrypted) != uint64(len(b)) {
		return nil, fmt.Errorf("parsing attestation request: %d key slots and %d encrypted bytes do not make %d bytes",
			slots, encrypted, len(b))
	}
	r := &Request{Flags: Flags(be.Uint64(b[0x30:]))}
	copy(r.IV[:], b[0x10:])
	copy(r.PublicKey[:], b[0x40:])
	rest := b[requestFixed:]
	for range slots {
		r.KeySlots = append(r.KeySlots, [KeySlotSize]byte(rest))
		rest = rest[KeySlotSize:]
	}
	r.Encrypted = rest[:encrypted:encrypted]
	copy(r.Tag[:], rest[encrypted:])
	return r, nil
}

const (
	headerMagic = "IBMSecEx"
	headerFixed = 0x1A0
	maxHeader   = 64 << 10
)

// ParseImageHeader reads the tags of an image from its header, which may be followed by the rest of the image.
func ParseImageHeader(b []byte) (t Tags, err error) {
	if len(b) < headerFixed+GCMTagSize {
		return t, fmt.Errorf("parsing image header: %d bytes, expected at least %d", len(b), headerFixed+GCMTagSize)
	}
	if string(b[:8]) != headerMagic {
		return t, fmt.Errorf("parsing image header: it begins with %q, expected %q", b[:8], headerMagic)
	}
	be := binary.BigEndian
	if v := be.Uint32(b[8:]); v != Version1 {
		return t, fmt.Errorf("parsing image header: version %#x, expected %#x", v, Version1)
	}
	size := be.Uint32(b[12:])
	if size < headerFixed+GCMTagSize || size > maxHeader || uint64(size) > uint64(len(b)) {
		return t, fmt.Errorf("parsing image header: its size says %d, there are %d bytes", size, len(b))
	}
	slots, encrypted := be.Uint64(b[0x20:]), be.Uint64(b[0x28:])
	if slots == 0 || slots > maxHeader || encrypted > maxHeader ||
		headerFixed+slots*KeySlotSize+encrypted+GCMTagSize != uint64(size) {
		return t, fmt.Errorf("parsing image header: %d key slots and %d encrypted bytes do not make %d bytes", slots, encrypted, size)
	}
	copy(t.PageList[:], b[0xE0:])
	copy(t.AddressList[:], b[0x120:])
	copy(t.TweakList[:], b[0x160:])
	copy(t.Tag[:], b[size-GCMTagSize:size])
	return t, nil
}

// Exchange is a file of pvattest: a request on its way to the guest, or the answer. Absent parts are nil.
type Exchange struct {
	Request, Measurement, Additional, UserData, CUID []byte
	// ExpectedMeasurement and ExpectedAdditional are the sizes that a request announces.
	ExpectedMeasurement, ExpectedAdditional uint32
}

const (
	exchangeMagic = "pvattest"
	exchangeFixed = 64
	maxExchange   = 1 << 20
)

// ParseExchange reads an exchange file.
func ParseExchange(b []byte) (*Exchange, error) {
	if len(b) < exchangeFixed || len(b) > maxExchange {
		return nil, fmt.Errorf("parsing exchange file: %d bytes, expected %d to %d", len(b), exchangeFixed, maxExchange)
	}
	be := binary.BigEndian
	if string(b[:8]) != exchangeMagic || be.Uint32(b[8:]) != Version1 {
		return nil, errors.New("parsing exchange file: it is not one of version 0x100")
	}
	if n := be.Uint32(b[12:]); uint64(n) != uint64(len(b)) {
		return nil, fmt.Errorf("parsing exchange file: its size says %d, there are %d bytes", n, len(b))
	}
	x := &Exchange{}
	var unused uint32
	for i, p := range []struct {
		name     string
		to       *[]byte
		expected *uint32
	}{
		{"request", &x.Request, &unused}, {"measurement", &x.Measurement, &x.ExpectedMeasurement},
		{"additional data", &x.Additional, &x.ExpectedAdditional}, {"user data", &x.UserData, &unused}, {"config UID", &x.CUID, &unused},
	} {
		size, off := be.Uint32(b[24+8*i:]), be.Uint32(b[28+8*i:])
		if off == 0 {
			*p.expected = size
			continue
		}
		if off < exchangeFixed || uint64(off)+uint64(size) > uint64(len(b)) {
			return nil, fmt.Errorf("parsing exchange file: %s of %d bytes at %d, there are %d bytes", p.name, size, off, len(b))
		}
		*p.to = b[off : off+size : off+size]
	}
	return x, nil
}
