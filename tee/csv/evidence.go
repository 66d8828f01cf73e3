package csv

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
)

// extendedMagic marks evidence of firmware that knows extended reports.
const extendedMagic = "ATTESTATION_EXT\x00"

const maxEvidence = 4 << 20

// Evidence is what a CoCo guest sends.
type Evidence struct {
	Report   *Report
	PEK      []byte // certificate of the key that signed the report
	Chain    []byte // hsk_cek, nil when the guest sent none
	Serial   string
	EventLog string // base64, may be empty
}

// numbers is bytes as a JSON list of numbers. Unlike a Go array it must have exactly the length of its place.
type numbers []byte

func (n *numbers) UnmarshalJSON(b []byte) error {
	var wide []uint16 // encoding/json takes []uint8 for base64
	if err := json.Unmarshal(b, &wide); err != nil {
		return fmt.Errorf("expected a list of bytes: %w", err)
	}
	out := make([]byte, len(wide))
	for i, v := range wide {
		if v > 0xff {
			return fmt.Errorf("element %d is %d, expected a byte", i, v)
		}
		out[i] = byte(v)
	}
	*n = out
	return nil
}

func (n numbers) MarshalJSON() ([]byte, error) {
	wide := make([]uint16, len(n))
	for i, v := range n {
		wide[i] = uint16(v)
	}
	return json.Marshal(wide)
}

type jsonEvidence struct {
	Report struct {
		Magic numbers `json:"magic"`
		Flags uint32  `json:"flags"`
		Data  numbers `json:"data"`
	} `json:"attestation_report"`
	Chain struct {
		HSKCEK *struct {
			HSK jsonRootCert `json:"hsk"`
			CEK jsonCert     `json:"cek"`
		} `json:"hsk_cek,omitempty"`
		PEK jsonCert `json:"pek"`
	} `json:"cert_chain"`
	Serial   numbers `json:"serial_number"`
	EventLog *string `json:"cc_eventlog"`
}

type jsonPoint struct {
	G uint32  `json:"g"`
	X numbers `json:"x"`
	Y numbers `json:"y"`
}

type jsonSignature struct {
	R numbers `json:"r"`
	S numbers `json:"s"`
}

type jsonRootCert struct {
	Body struct {
		Preamble struct {
			Version uint32 `json:"ver"`
			Data    struct {
				KeyID    numbers `json:"kid"`
				SignerID numbers `json:"sid"`
				Usage    uint32  `json:"usage"`
				Reserved numbers `json:"reserved"`
			} `json:"data"`
		} `json:"preamble"`
		Key      jsonPoint `json:"pubkey"`
		UIDSize  uint16    `json:"uid_size"`
		UserID   numbers   `json:"user_id"`
		Reserved numbers   `json:"reserved"`
	} `json:"body"`
	Signature jsonSignature `json:"signature"`
	Reserved  numbers       `json:"_reserved"`
}

type jsonCert struct {
	Body struct {
		Version uint32 `json:"ver"`
		Data    struct {
			Firmware struct {
				Major uint8 `json:"major"`
				Minor uint8 `json:"minor"`
			} `json:"firmware"`
			Reserved1 uint16 `json:"reserved1"`
			Key       struct {
				Usage     uint32    `json:"usage"`
				Algorithm uint32    `json:"algo"`
				Point     jsonPoint `json:"key"`
			} `json:"pubkey"`
			UIDSize   uint16  `json:"uid_size"`
			UserID    numbers `json:"user_id"`
			SignerID  numbers `json:"sid"`
			Reserved2 numbers `json:"reserved2"`
		} `json:"data"`
	} `json:"body"`
	Signatures []jsonCertSignature `json:"sigs"`
}

type jsonCertSignature struct {
	Usage     uint32        `json:"usage"`
	Algorithm uint32        `json:"algo"`
	Signature jsonSignature `json:"signature"`
	Reserved  numbers       `json:"_reserved"`
}

// ParseEvidence reads evidence as CoCo guests send it.
func ParseEvidence(raw []byte) (*Evidence, error) {
	if len(raw) > maxEvidence {
		return nil, fmt.Errorf("parsing CSV evidence: %d bytes, at most %d are read", len(raw), maxEvidence)
	}
	var j jsonEvidence
	if err := json.Unmarshal(raw, &j); err != nil {
		return nil, fmt.Errorf("parsing CSV evidence: %w", err)
	}
	extended, err := isExtended(j.Report.Magic, j.Report.Flags)
	if err != nil {
		return nil, fmt.Errorf("parsing CSV evidence: %w", err)
	}
	e := &Evidence{}
	if e.Report, err = ParseReport(j.Report.Data, extended); err != nil {
		return nil, fmt.Errorf("parsing CSV evidence: %w", err)
	}
	e.Report.Signer.MACed = nil // guests check the MAC and do not keep what it was over
	if e.PEK, err = j.Chain.PEK.binary(); err != nil {
		return nil, fmt.Errorf("parsing CSV evidence: cert_chain.pek: %w", err)
	}
	if c := j.Chain.HSKCEK; c != nil {
		hsk, err := c.HSK.binary()
		if err != nil {
			return nil, fmt.Errorf("parsing CSV evidence: cert_chain.hsk_cek.hsk: %w", err)
		}
		cek, err := c.CEK.binary()
		if err != nil {
			return nil, fmt.Errorf("parsing CSV evidence: cert_chain.hsk_cek.cek: %w", err)
		}
		e.Chain = append(hsk, cek...)
	}
	if e.Serial, err = ParseSerial(j.Serial); err != nil {
		return nil, fmt.Errorf("parsing CSV evidence: serial_number: %w", err)
	}
	if j.EventLog != nil {
		e.EventLog = *j.EventLog
	}
	return e, nil
}

// ParseRawEvidence reads a report as firmware returns it, with the magic and flags it was asked for with (both may be
// zero), as the evidence a guest would make of it. chain is hsk_cek or nil.
func ParseRawEvidence(magic string, flags uint32, report, chain []byte) (*Evidence, error) {
	if magic == "" {
		magic = string(make([]byte, len(extendedMagic)))
	}
	extended, err := isExtended([]byte(magic), flags)
	if err != nil {
		return nil, fmt.Errorf("parsing CSV report: %w", err)
	}
	r, err := ParseReport(report, extended)
	if err != nil {
		return nil, err
	}
	return &Evidence{Report: r, PEK: r.Signer.PEK, Chain: chain, Serial: r.Signer.Serial}, nil
}

func isExtended(magic []byte, flags uint32) (bool, error) {
	switch {
	case string(magic) == strings.Repeat("\x00", len(extendedMagic)):
		return false, nil
	case string(magic) == extendedMagic && flags <= 1:
		return flags == 1, nil
	}
	return false, fmt.Errorf("report of magic %.16q and flags %d, expected %q with 0 or 1, or no magic", magic, flags, extendedMagic)
}

// writer puts fields one after another and remembers the first of a wrong length.
type writer struct {
	buf bytes.Buffer
	err error
}

func (w *writer) u8(v uint8)   { w.buf.WriteByte(v) }
func (w *writer) u16(v uint16) { _ = binary.Write(&w.buf, binary.LittleEndian, v) } // to memory: cannot fail
func (w *writer) u32(v uint32) { _ = binary.Write(&w.buf, binary.LittleEndian, v) }

func (w *writer) bytes(name string, b []byte, size int) {
	if len(b) != size && w.err == nil {
		w.err = fmt.Errorf("%s has %d bytes, expected %d", name, len(b), size)
	}
	w.buf.Write(b)
}

func (w *writer) point(p jsonPoint) {
	w.u32(p.G)
	w.bytes("x", p.X, fieldSize)
	w.bytes("y", p.Y, fieldSize)
}

func (w *writer) signature(s jsonSignature) {
	w.bytes("r", s.R, fieldSize)
	w.bytes("s", s.S, fieldSize)
}

func (c *jsonRootCert) binary() ([]byte, error) {
	w := &writer{}
	w.u32(c.Body.Preamble.Version)
	w.bytes("kid", c.Body.Preamble.Data.KeyID, 16)
	w.bytes("sid", c.Body.Preamble.Data.SignerID, 16)
	w.u32(c.Body.Preamble.Data.Usage)
	w.bytes("reserved", c.Body.Preamble.Data.Reserved, 24)
	w.point(c.Body.Key)
	w.u16(c.Body.UIDSize)
	w.bytes("user_id", c.Body.UserID, maxUserID)
	w.bytes("reserved", c.Body.Reserved, 108)
	w.signature(c.Signature)
	w.bytes("_reserved", c.Reserved, 112)
	return w.buf.Bytes(), w.err
}

func (c *jsonCert) binary() ([]byte, error) {
	w := &writer{}
	d := &c.Body.Data
	w.u32(c.Body.Version)
	w.u8(d.Firmware.Major)
	w.u8(d.Firmware.Minor)
	w.u16(d.Reserved1)
	w.u32(d.Key.Usage)
	w.u32(d.Key.Algorithm)
	w.point(d.Key.Point)
	w.u16(d.UIDSize)
	w.bytes("user_id", d.UserID, maxUserID)
	w.bytes("sid", d.SignerID, 16)
	w.bytes("reserved2", d.Reserved2, 608)
	if len(c.Signatures) != 2 {
		return nil, fmt.Errorf("sigs has %d elements, expected 2", len(c.Signatures))
	}
	for _, s := range c.Signatures {
		w.u32(s.Usage)
		w.u32(s.Algorithm)
		w.signature(s.Signature)
		w.bytes("_reserved", s.Reserved, 368)
	}
	return w.buf.Bytes(), w.err
}
