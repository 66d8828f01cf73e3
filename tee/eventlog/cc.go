package eventlog

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
)

// CCRegisters is the number of run-time registers a confidential computing
// log speaks of: indices 1 to 4 are RTMR 0 to 3. Index 0 is the measurement
// of the initial memory, which no event extends.
const CCRegisters = 4

// CheckCC replays a confidential computing log in one algorithm and compares
// the result with the run-time registers of a quote, in their order. Registers
// without events must still be zero.
//
// An event outside the registers would be shown to policies although nothing
// measured it, so it is an error; EV_NO_ACTION events are never measured and
// may stand anywhere. Upstream takes events of any index. Types that have no
// name are an error too, as upstream.
func (l *Log) CheckCC(alg Alg, registers [][]byte) error {
	if !l.CryptoAgile {
		return errors.New("checking event log: it has the form of TPM 1.2, expected the crypto-agile form")
	}
	if len(registers) != CCRegisters {
		return fmt.Errorf("checking event log: %d registers given, expected %d", len(registers), CCRegisters)
	}
	for i := range l.Events {
		e := &l.Events[i]
		if !e.Type.Known() {
			return fmt.Errorf("checking event log: event %d has the unknown type %v", i, e.Type)
		}
		if e.Type != NoAction && (e.Index < 1 || e.Index > CCRegisters) {
			return fmt.Errorf("checking event log: event %d (%v) is of register %d, expected 1 to %d", i, e.Type, e.Index, CCRegisters)
		}
	}
	replayed, err := l.Replay(alg)
	if err != nil {
		return err
	}
	var faults []error
	for i, want := range registers {
		got := replayed[uint32(i)+1]
		if got == nil {
			got = make([]byte, len(want))
		}
		if !bytes.Equal(got, want) {
			faults = append(faults, fmt.Errorf("event log gives rtmr_%d = %x, expected %x as quoted", i, got, want))
		}
	}
	return errors.Join(faults...)
}

// claimName is the name of an algorithm in claims.
func (a Alg) claimName() string {
	switch a {
	case SHA1:
		return "SHA-1"
	case SHA256:
		return "SHA-256"
	case SHA384:
		return "SHA-384"
	case SHA512:
		return "SHA-512"
	case SM3:
		return "SM3"
	}
	return a.String()
}

// Claims lists the events after the header as the claim uefi_event_logs has
// them (attestation-service.md section 6.3). Of each event's digests only that
// of alg is listed, the one a replay in alg has tied to a register, and
// digest_matches_event is about that one.
//
// The data of an event is as true as its digest only where
// digest_matches_event holds; elsewhere, details included, it is the word of
// whoever wrote the log.
func (l *Log) Claims(alg Alg) []any {
	events := l.Events
	if l.CryptoAgile && len(events) > 0 {
		events = events[1:]
	}
	out := make([]any, 0, len(events))
	for i := range events {
		e := &events[i]
		digests := []any{}
		matches := false
		if sum := e.Digest(alg); sum != nil {
			digests = append(digests, map[string]any{"alg": alg.claimName(), "digest": hex.EncodeToString(sum)})
			matches = bytes.Equal(alg.Sum(e.Data), sum)
		}
		out = append(out, map[string]any{
			"index":                int64(e.Index),
			"type_name":            e.Type.String(),
			"digests":              digests,
			"event":                base64.StdEncoding.EncodeToString(e.Data),
			"digest_matches_event": matches,
			"details":              e.Details(),
		})
	}
	return out
}
