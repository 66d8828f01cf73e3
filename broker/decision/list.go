package decision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/store"
)

// MaxList is the most records of one List.
const MaxList = 200

// ListOptions choose records. Empty members choose all.
type ListOptions struct {
	Kind     string
	Decision string
	// Status is that of at least one part.
	Status string
	// Before is the id of a record: those that are older are listed. A caller that wants more asks again with the id of
	// the last record it got.
	Before string
	// Limit is the most records that are listed; 0 and more than MaxList mean MaxList.
	Limit int
}

// head is what is read of a record to choose it.
type head struct {
	Kind     string `json:"kind"`
	Decision string `json:"decision"`
	Parts    []struct {
		Status string `json:"status"`
	} `json:"parts"`
}

func (o ListOptions) chooses(h head) bool {
	if o.Kind != "" && h.Kind != o.Kind || o.Decision != "" && h.Decision != o.Decision {
		return false
	}
	if o.Status == "" {
		return true
	}
	for _, p := range h.Parts {
		if p.Status == o.Status {
			return true
		}
	}
	return false
}

var errEnough = errors.New("enough")

// List returns records, the newest first, without the evidence of their parts and without the attestations they relied on:
// Get has these. The ids sort by time, so that only what is listed, and what the options leave out on the way, is read.
func (s *Store) List(ctx context.Context, o ListOptions) ([]Record, error) {
	if o.Before != "" && !ValidID(o.Before) {
		return nil, fmt.Errorf("listing decisions before %.64q: that is no request id", o.Before)
	}
	if o.Limit <= 0 || o.Limit > MaxList {
		o.Limit = MaxList
	}
	list := []Record{}
	err := s.db.Back(ctx, store.Decisions, o.Before, func(id string, value []byte) error {
		var h head
		if err := json.Unmarshal(value, &h); err != nil {
			return fmt.Errorf("reading decision %s: %w", id, err)
		}
		if !o.chooses(h) {
			return nil
		}
		var r Record
		if err := json.Unmarshal(value, &r); err != nil {
			return fmt.Errorf("reading decision %s: %w", id, err)
		}
		for i := range r.Parts {
			r.Parts[i].Evidence = nil
		}
		if list = append(list, r); len(list) == o.Limit {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, fmt.Errorf("listing decisions: %w", err)
	}
	return list, nil
}
