package csv

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/cloister/cloister/tee/csv"
	"github.com/cloister/cloister/tee/eventlog"
)

const (
	maxLog    = 1 << 20
	maxEvents = 4096
)

// policyClaims are numbers, as upstream has them, also where only 0 and 1 can be.
func policyClaims(p csv.Policy) map[string]any {
	return map[string]any{
		"nodbg": bit(p.NoDebug()), "noks": bit(p.NoKeySharing()), "es": bit(p.EncryptedState()), "nosend": bit(p.NoSend()),
		"domain": bit(p.Domain()), "csv": bit(p.CSV()), "csv3": bit(p.CSV3()), "asid_reuse": bit(p.ASIDReuse()),
		"hsk_version": int64(p.HSKVersion()), "cek_version": int64(p.CEKVersion()),
		"api_major": int64(p.APIMajor()), "api_minor": int64(p.APIMinor()),
	}
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// checkEventLog replays the log: registers 1 to 4 must come out as reported, zero where the log does not speak of them.
func checkEventLog(text string, rtmr [5][32]byte) ([]any, error) {
	if len(text) > base64.StdEncoding.EncodedLen(maxLog) {
		return nil, fmt.Errorf("cc_eventlog has %d characters, more than a log of %d bytes", len(text), maxLog)
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("reading cc_eventlog: %w", err)
	}
	log, err := eventlog.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("reading cc_eventlog: %w", err)
	}
	if len(log.Events) > maxEvents {
		return nil, fmt.Errorf("cc_eventlog has %d events, at most %d are read", len(log.Events), maxEvents)
	}
	if !log.CryptoAgile {
		return nil, errors.New("cc_eventlog has the form of TPM 1.2, which knows no SM3")
	}
	// Events of other registers may lack an SM3 digest; nothing vouches for them, and so they are not claimed either.
	kept := log.Events[:1:1] // the header
	for _, e := range log.Events[1:] {
		if e.Index >= 1 && int(e.Index) < len(rtmr) && e.Type != eventlog.NoAction {
			kept = append(kept, e)
		}
	}
	log.Events = kept
	registers, err := log.Replay(eventlog.SM3)
	if err != nil {
		return nil, fmt.Errorf("replaying cc_eventlog: %w", err)
	}
	var faults []error
	for i := 1; i < len(rtmr); i++ {
		got, spoken := registers[uint32(i)]
		if !spoken {
			got = make([]byte, len(rtmr[i]))
		}
		if !bytes.Equal(got, rtmr[i][:]) {
			faults = append(faults, fmt.Errorf("cc_eventlog gives rtmr%d = %x, the report has %x", i, got, rtmr[i]))
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return log.Claims(eventlog.SM3), nil
}
