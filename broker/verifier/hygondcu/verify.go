// Package hygondcu verifies reports of Hygon DCU accelerators.
//
// A report is signed (SM2 with SM3) by the key of the chip itself: HRK → HSK → CEK → report, with the same root and the
// same certificates, looked up by the chip's serial number, as Hygon's CPUs. The signature covers the body as the driver
// lays it out: version u32, chip id 16, user data 64, measure 32, reserved 128, signature usage u32, algorithm u32, integers
// little-endian, 252 bytes. Verify checks chain, signature and user data of every report and refuses evidence with none.
//
// The claims are one set with a member per report, "0", "1", …, as upstream makes them; attestation-service.md section
// 4.11 has the members of each. There is no recorded evidence of a real DCU: the layout is that of Hygon's public library,
// and what we have verified are reports we made ourselves.
package hygondcu

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	csvverifier "github.com/cloister/cloister/broker/verifier/csv"
	"github.com/cloister/cloister/tee/csv"
)

const (
	maxEvidence = 1 << 20
	maxReports  = 64

	userDataSize = 64
	numberSize   = 32
	fieldSize    = 72
)

// ErrNoEndorsement says that nobody could be asked who vouches for a chip.
var ErrNoEndorsement = csvverifier.ErrNoEndorsement

// Options is what the evidence is held against.
type Options struct {
	// ExpectedReportData must be the user data of every report, padded with zeros to 64 bytes.
	ExpectedReportData []byte
	// InitDataDigest is not looked at: devices have no init data.
	InitDataDigest []byte
	// Root is the certificate the chain must lead to, 832 bytes; nil is Hygon's.
	Root []byte
	// Endorsements finds the certificates of a chip, which the evidence never brings.
	Endorsements csvverifier.Endorsements
	// Now is not looked at: Hygon's certificates have no dates.
	Now time.Time
	// Offline leaves out the user data: the evidence may be a replay.
	Offline bool
}

// list is bytes as a JSON list of numbers.
type list []byte

func (l *list) UnmarshalJSON(b []byte) error {
	var wide []uint16 // encoding/json takes []uint8 for base64
	if err := json.Unmarshal(b, &wide); err != nil {
		return fmt.Errorf("expected a list of bytes: %w", err)
	}
	*l = make(list, len(wide))
	for i, v := range wide {
		if v > 0xff {
			return fmt.Errorf("element %d is %d, expected a byte", i, v)
		}
		(*l)[i] = byte(v)
	}
	return nil
}

type report struct {
	Body struct {
		Version  uint32 `json:"version"`
		ChipID   list   `json:"chip_id"`
		UserData list   `json:"user_data"`
		Measure  list   `json:"measure"`
		Reserved list   `json:"reserved"`
		SigUsage uint32 `json:"sig_usage"`
		SigAlgo  uint32 `json:"sig_algo"`
	} `json:"body"`
	Signature struct {
		R list `json:"r"`
		S list `json:"s"`
	} `json:"sig"`
}

// Verify checks evidence and returns its claims, of class dcu.
func Verify(ctx context.Context, evidence json.RawMessage, o Options) (map[string]any, error) {
	if len(evidence) > maxEvidence {
		return nil, fmt.Errorf("DCU evidence of %d bytes, at most %d are read", len(evidence), maxEvidence)
	}
	var e struct {
		Reports []report `json:"attestation_reports"`
	}
	if err := json.Unmarshal(evidence, &e); err != nil {
		return nil, fmt.Errorf("reading DCU evidence: %w", err)
	}
	if n := len(e.Reports); n == 0 || n > maxReports {
		return nil, fmt.Errorf("attestation_reports has %d reports, expected 1 to %d", n, maxReports)
	}
	if !o.Offline {
		if n := len(o.ExpectedReportData); n == 0 || n > userDataSize {
			return nil, fmt.Errorf("report data of %d bytes to bind DCU reports to, expected 1 to %d", n, userDataSize)
		}
	}
	claims := map[string]any{}
	for i := range e.Reports {
		c, err := e.Reports[i].verify(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("attestation_reports[%d]: %w", i, err)
		}
		claims[strconv.Itoa(i)] = c
	}
	return claims, nil
}

func (r *report) verify(ctx context.Context, o Options) (map[string]any, error) {
	signed, err := r.signed()
	if err != nil {
		return nil, err
	}
	signature, err := r.signature()
	if err != nil {
		return nil, err
	}
	serial, err := csv.ParseSerial(r.Body.ChipID)
	if err != nil {
		return nil, fmt.Errorf("chip_id: %w", err)
	}
	if !o.Offline {
		want := make([]byte, userDataSize)
		copy(want, o.ExpectedReportData)
		if subtle.ConstantTimeCompare(r.Body.UserData, want) != 1 {
			return nil, fmt.Errorf("user_data = %x, expected %x: the report was made for another session", []byte(r.Body.UserData), want)
		}
	}
	if o.Endorsements == nil {
		return nil, fmt.Errorf("%w %s: no store is configured", ErrNoEndorsement, serial)
	}
	chain, err := o.Endorsements.HSKCEK(ctx, serial)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrNoEndorsement, serial, err)
	}
	cek, err := csvverifier.CheckChipKey(o.Root, chain)
	if err != nil {
		return nil, err
	}
	if err := csvverifier.CheckSignature(cek.Key, signed, signature); err != nil {
		return nil, fmt.Errorf("report of chip %s: %w", serial, err)
	}
	return r.claims(), nil
}

// signed is the body as the driver lays it out.
func (r *report) signed() ([]byte, error) {
	b := &r.Body
	for _, f := range []struct {
		name string
		got  list
		size int
	}{{"chip_id", b.ChipID, 16}, {"user_data", b.UserData, userDataSize}, {"measure", b.Measure, 32}, {"reserved", b.Reserved, 128}} {
		if len(f.got) != f.size {
			return nil, fmt.Errorf("%s has %d bytes, expected %d", f.name, len(f.got), f.size)
		}
	}
	out := binary.LittleEndian.AppendUint32(nil, b.Version)
	out = slices.Concat(out, b.ChipID, b.UserData, b.Measure, b.Reserved)
	out = binary.LittleEndian.AppendUint32(out, b.SigUsage)
	return binary.LittleEndian.AppendUint32(out, b.SigAlgo), nil
}

func (r *report) signature() (s csv.Signature, err error) {
	if s.R, err = number("sig.r", r.Signature.R); err != nil {
		return s, err
	}
	s.S, err = number("sig.s", r.Signature.S)
	return s, err
}

// number turns a little-endian field of 72 bytes around.
func number(name string, b list) (n [numberSize]byte, err error) {
	if len(b) != fieldSize {
		return n, fmt.Errorf("%s has %d bytes, expected %d", name, len(b), fieldSize)
	}
	for _, v := range b[numberSize:] {
		if v != 0 {
			return n, errors.New(name + " is longer than 32 bytes")
		}
	}
	copy(n[:], b)
	slices.Reverse(n[:])
	return n, nil
}

func (r *report) claims() map[string]any {
	b := &r.Body
	return map[string]any{
		"body": map[string]any{
			"version":   int64(b.Version),
			"chip_id":   hex.EncodeToString(b.ChipID),
			"user_data": hex.EncodeToString(b.UserData),
			"measure":   hex.EncodeToString(b.Measure),
			"reserved":  hex.EncodeToString(b.Reserved),
			"sig_usage": strconv.FormatUint(uint64(b.SigUsage), 16),
			"sig_algo":  strconv.FormatUint(uint64(b.SigAlgo), 16),
		},
		"report_data": hex.EncodeToString(b.UserData),
	}
}
