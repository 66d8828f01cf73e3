package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cloister/cloister/broker/refstore"
)

// near is the accepted value that is the least different from the one got.
type near struct {
	Value json.RawMessage `json:"value"`
	// Differs says in which bytes.
	Differs string `json:"differs"`
	at      int    // the first byte that differs, -1 when they are not to be shown side by side
}

// nearest looks for a near miss. Of digests of different things all bytes differ: then there is none.
func nearest(got json.RawMessage, accepted []json.RawMessage) *near {
	var text string
	if json.Unmarshal(got, &text) != nil {
		return nearestNumber(got, accepted)
	}
	raw, form := decodeBytes(text)
	var best *near
	least := 0
	for _, v := range accepted {
		var other string
		if json.Unmarshal(v, &other) != nil {
			if string(v) == text { // "1" and 1
				return &near{Value: v, Differs: "the same, but not a text: policies tell numbers and texts apart", at: -1}
			}
			continue
		}
		wanted, otherForm := decodeBytes(other)
		switch {
		case strings.EqualFold(strings.TrimSpace(other), text):
			return &near{Value: v, Differs: "the same but for upper and lower case or white space: register it as the guest has it", at: -1}
		case raw == nil || wanted == nil:
			continue
		case bytes.Equal(raw, wanted):
			return &near{Value: v, Differs: fmt.Sprintf("the same bytes, but written as %s and not as %s", otherForm, form), at: -1}
		case form != otherForm:
			continue
		case len(raw) != len(wanted):
			if best == nil && (bytes.HasPrefix(raw, wanted) || bytes.HasPrefix(wanted, raw)) && min(len(raw), len(wanted)) > 0 {
				best = &near{Value: v, Differs: fmt.Sprintf("the same beginning, but %d bytes and not %d", len(wanted), len(raw)), at: -1}
				least = len(raw)
			}
			continue
		}
		differ, first := 0, -1
		for i := range raw {
			if raw[i] != wanted[i] {
				if differ++; first < 0 {
					first = i
				}
			}
		}
		if 2*differ <= len(raw) && (best == nil || differ < least) {
			least = differ
			best = &near{Value: v, Differs: fmt.Sprintf("%d of %d bytes differ, the first is byte %d", differ, len(raw), first), at: first}
			if form != "hex" {
				best.at = -1
			}
		}
	}
	return best
}

// nearestNumber says by how much a number misses.
func nearestNumber(got json.RawMessage, accepted []json.RawMessage) *near {
	var n int64
	if json.Unmarshal(got, &n) != nil {
		return nil
	}
	var best *near
	var least uint64
	for _, v := range accepted {
		var other int64
		if json.Unmarshal(v, &other) != nil {
			continue
		}
		diff, word := uint64(n)-uint64(other), "more"
		if n < other {
			diff, word = uint64(other)-uint64(n), "less"
		}
		if best == nil || diff < least {
			best, least = &near{Value: v, Differs: fmt.Sprintf("%d %s than %d", diff, word, other), at: -1}, diff
		}
	}
	return best
}

// decodeBytes reads hex or base64, whichever the text is; nil when it is neither or short.
func decodeBytes(text string) (raw []byte, form string) {
	if b, err := hex.DecodeString(text); err == nil && len(b) > 0 {
		return b, "hex"
	}
	if b, err := base64.StdEncoding.DecodeString(text); err == nil && len(b) >= 16 {
		return b, "base64"
	}
	return nil, ""
}

// groupMatch says how much of what a group registered a guest shows.
type groupMatch struct {
	Group   string   `json:"group"`
	Matches int      `json:"matches"`
	Of      int      `json:"of"`
	Not     []string `json:"not,omitempty"` // the names whose values the guest does not show
}

// nearestGroups finds the groups of reference values that evidence resembles, the nearest first. A group is mostly a pod, and
// so this says which pod a guest wants to be, and in what it differs.
func nearestGroups(records []refstore.Record, evidence []json.RawMessage) []groupMatch {
	shown := map[string]bool{}
	for _, raw := range evidence {
		var v any
		if json.Unmarshal(raw, &v) == nil {
			texts(v, shown)
		}
	}
	groups := map[string]*groupMatch{}
	for _, r := range records {
		matched := map[string]bool{} // by group
		for _, e := range r.Elements {
			var text string
			if json.Unmarshal(e.Value, &text) != nil {
				continue // small numbers match by chance
			}
			for _, ap := range e.Approvals {
				matched[ap.Group] = matched[ap.Group] || shown[text]
			}
		}
		for group, ok := range matched {
			g := groups[group]
			if g == nil {
				g = &groupMatch{Group: group}
				groups[group] = g
			}
			if g.Of++; ok {
				g.Matches++
			} else {
				g.Not = append(g.Not, r.Name)
			}
		}
	}
	var out []groupMatch
	for _, g := range groups {
		if g.Group != "" && g.Matches > 0 {
			out = append(out, *g)
		}
	}
	slices.SortFunc(out, func(a, b groupMatch) int {
		return cmp.Or(b.Matches-a.Matches, a.Of-b.Of, strings.Compare(a.Group, b.Group))
	})
	return out[:min(len(out), 3)]
}

// texts collects the texts in JSON.
func texts(v any, into map[string]bool) {
	switch v := v.(type) {
	case string:
		into[v] = true
	case []any:
		for _, e := range v {
			texts(e, into)
		}
	case map[string]any:
		for _, e := range v {
			texts(e, into)
		}
	}
}
