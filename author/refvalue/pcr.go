package refvalue

import (
	"crypto/sha256"
	"encoding/hex"
)

// Event is one predicted measurement.
type Event struct {
	PCR    int    `json:"pcr"`
	Type   string `json:"type"`
	Digest string `json:"digest"` // hex SHA-256
	// What says in words what is measured and where it comes from.
	What string `json:"what"`

	sum [sha256.Size]byte
}

func newEvent(pcr int, kind string, sum [sha256.Size]byte, what string) Event {
	return Event{PCR: pcr, Type: kind, Digest: hex.EncodeToString(sum[:]), What: what, sum: sum}
}

// separator is measured into each register when the firmware hands over.
func separator(pcr int) Event {
	return newEvent(pcr, "EV_SEPARATOR", sha256.Sum256(make([]byte, 4)), "the firmware hands over: four zero bytes")
}

// extend plays events into a register that starts at zero.
func extend(events []Event) string {
	var reg [sha256.Size]byte
	for _, e := range events {
		reg = sha256.Sum256(append(reg[:], e.sum[:]...))
	}
	return hex.EncodeToString(reg[:])
}
