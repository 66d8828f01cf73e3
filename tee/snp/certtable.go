package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	tableEntrySize  = 24
	maxTableEntries = 32
	maxTableSize    = 64 << 10
	maxCertificate  = 64 << 10 // also of CRLs
	pemCertificate  = "CERTIFICATE"
	pemCRL          = "X509 CRL"
)

// GUID names an entry of a certificate table, as stored.
type GUID [16]byte

// String is the usual form, 8-4-4-4-12.
func (g GUID) String() string {
	s := hex.EncodeToString(g[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// CertType is what an entry holds.
type CertType string

// Types of entries, spelled as in the JSON form of evidence.
const (
	CertVCEK  CertType = "VCEK"
	CertVLEK  CertType = "VLEK"
	CertASK   CertType = "ASK" // or the ASVK
	CertARK   CertType = "ARK"
	CertCRL   CertType = "CRL"
	CertOther CertType = "OTHER"
)

// Type is what the entry holds by its name.
func (g GUID) Type() CertType {
	switch g.String() {
	case "63da758d-e664-4564-adc5-f4b93be8accd":
		return CertVCEK
	case "a8074bc2-a25a-483e-aae6-39c045a0b8a1":
		return CertVLEK
	case "4ab7b379-bbac-4fe4-a02f-05aef327c782":
		return CertASK
	case "c0b406a4-a803-4952-9743-3fb6014cd0ae":
		return CertARK
	case "92f81bc3-5811-4d3d-97ff-d19f88dc67ea":
		return CertCRL
	}
	return CertOther
}

// TableEntry is one certificate that the host hands over beside a report.
type TableEntry struct {
	GUID GUID
	Data []byte // DER or PEM
}

// ParseCertTable reads the table of certificates of an extended guest request (auxblob of configfs-tsm). Entries share the
// memory of b.
func ParseCertTable(b []byte) ([]TableEntry, error) {
	if len(b) > maxTableSize {
		return nil, fmt.Errorf("parsing certificate table: %d bytes, at most %d are read", len(b), maxTableSize)
	}
	var out []TableEntry
	for at := 0; ; at += tableEntrySize {
		if len(b)-at < tableEntrySize {
			return nil, fmt.Errorf("parsing certificate table: it ends at %d without a last entry", len(b))
		}
		e := b[at : at+tableEntrySize]
		id := GUID(e)
		if id == (GUID{}) {
			return out, nil
		}
		if len(out) == maxTableEntries {
			return nil, fmt.Errorf("parsing certificate table: more than %d entries", maxTableEntries)
		}
		offset, length := uint64(binary.LittleEndian.Uint32(e[16:])), uint64(binary.LittleEndian.Uint32(e[20:]))
		if offset+length > uint64(len(b)) {
			return nil, fmt.Errorf("parsing certificate table: entry %s is bytes %d to %d of %d", id, offset, offset+length, len(b))
		}
		out = append(out, TableEntry{GUID: id, Data: b[offset : offset+length : offset+length]})
	}
}

// DER returns a certificate or CRL as DER: as it is, or out of its first PEM block.
func DER(data []byte) ([]byte, error) {
	if len(data) > maxCertificate {
		return nil, fmt.Errorf("certificate has %d bytes, at most %d are read", len(data), maxCertificate)
	}
	if !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("-----BEGIN")) {
		if len(data) == 0 {
			return nil, errors.New("certificate is empty")
		}
		return data, nil
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != pemCertificate && block.Type != pemCRL {
		return nil, errors.New("PEM text holds no certificate")
	}
	return block.Bytes, nil
}
