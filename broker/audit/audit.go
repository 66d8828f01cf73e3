// Package audit records every decision of the broker in files that can only grow.
//
// One JSON object per line. Each line carries the SHA-256 of the line before it, so an edited, removed or reordered line
// breaks the chain at that point; cutting lines off the end is noticed by comparing the last hash with one seen earlier
// (the status endpoint shows it). A line is on disk before Append returns, and a caller that cannot append must not act:
// no secret leaves the broker without its record. Records name secrets by path and never hold their content.
//
// A file that is full is renamed (audit.jsonl becomes audit.000000000001.jsonl, after the number of its first line) and a new one
// begun, whose first line names the last one of the file before: it carries the next number and that line's hash. Where only some
// files are kept, an entry says up to which line the others went, before they go: files that nobody recorded the removal of are
// missing. Each replica of a broker has a chain of its own, in files of its own, and its name in every line.
package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// The decisions.
const (
	Allow = "allow"
	Deny  = "deny"
	Error = "error"
)

// Entry is one decision. Seq, Time, Replica, Prev and Hash are set by Append.
type Entry struct {
	Seq         uint64    `json:"seq"`
	Time        time.Time `json:"time"`
	Replica     string    `json:"replica,omitempty"`
	Event       string    `json:"event"`
	Decision    string    `json:"decision"`
	RequestID   string    `json:"request_id"`
	Tenant      string    `json:"tenant,omitempty"`
	Remote      string    `json:"remote,omitempty"`
	Session     string    `json:"session,omitempty"`
	TEE         string    `json:"tee,omitempty"`
	Attestation string    `json:"attestation,omitempty"`
	Subject     string    `json:"subject,omitempty"`
	Policy      string    `json:"policy,omitempty"`
	Status      string    `json:"status,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	Prev        string    `json:"prev"`
	Hash        string    `json:"hash,omitempty"`
}

// maxLine bounds one record when reading; Append cuts reasons well below it.
const (
	maxLine   = 64 << 10
	maxReason = 4 << 10
	maxField  = 1 << 10
)

// Genesis is the hash before the first entry.
func Genesis() string { return hex.EncodeToString(make([]byte, sha256.Size)) }

// clean bounds the text of an entry and makes it valid UTF-8: text that JSON would change on the way breaks the hash.
func clean(e *Entry) {
	for _, s := range []*string{&e.Event, &e.Decision, &e.RequestID, &e.Remote, &e.Session, &e.TEE, &e.Attestation,
		&e.Subject, &e.Policy, &e.Status, &e.Reason} {
		most := maxField
		if s == &e.Reason {
			most = maxReason
		}
		if len(*s) > most {
			*s = (*s)[:most] + "..."
		}
		*s = strings.ToValidUTF8(*s, "?")
	}
}

// encode returns the hash of an entry (over its JSON without the hash) and its line.
func encode(e Entry) (string, []byte, error) {
	e.Hash = ""
	body, err := json.Marshal(e)
	if err != nil {
		return "", nil, fmt.Errorf("encoding audit entry: %w", err)
	}
	sum := sha256.Sum256(body)
	e.Hash = hex.EncodeToString(sum[:])
	line, err := json.Marshal(e)
	if err != nil {
		return "", nil, fmt.Errorf("encoding audit entry: %w", err)
	}
	return e.Hash, append(line, '\n'), nil
}
