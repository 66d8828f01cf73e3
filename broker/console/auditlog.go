package console

import (
	"net/http"
	"slices"
	"strconv"

	"github.com/cloister/cloister/broker/audit"
)

// auditRows is how many entries a page has.
const auditRows = 100

type auditBody struct {
	Entries []audit.Entry
	// Head and Hash are of the log's last entry.
	Head uint64
	Hash string
	// Broken says where the chain of what was read is broken; "" when it is not.
	Broken string
	// First is the number of the oldest entry that was checked for this page, Older the number before which the next page is.
	First, Older uint64
}

// auditTail shows entries, the newest first. Reading them checks their chain.
func (c *Console) auditTail(v *visit) error {
	var b auditBody
	b.Head, b.Hash = c.Audit.Head()
	last := b.Head
	if text := v.r.URL.Query().Get("before"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n == 0 || n > b.Head+1 {
			return status{http.StatusNotFound, "There is no such page of the log."}
		}
		last = n - 1
	}
	since := uint64(0)
	if last > auditRows {
		since = last - auditRows
	}
	if last > since {
		entries, err := c.Audit.Since(v.r.Context(), since, int(last-since))
		if err != nil {
			b.Broken = err.Error()
		}
		b.Entries = entries
	}
	if len(b.Entries) > 0 {
		b.First = b.Entries[0].Seq
		if b.First > 1 {
			b.Older = b.First
		}
	}
	slices.Reverse(b.Entries)
	return v.show("audit", "Audit log", root+"audit", b)
}
