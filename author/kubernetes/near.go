package kubernetes

import (
	"fmt"
	"maps"
	"slices"

	"github.com/cloister/cloister/internal/nearest"
)

// Bounds of a guess, in bytes and in mistakes: in a short name two mistakes make another word.
const (
	minGuess    = 4
	maxMistakes = 2
)

// near names the member of a mapping that may have been meant, as the end of a message; "" if none is written nearly so.
func (r rules) near(key string) string {
	if len(key) < minGuess {
		return ""
	}
	names := slices.Concat(slices.Collect(maps.Keys(r.fields)), slices.Collect(maps.Keys(r.accept)), slices.Collect(maps.Keys(r.refuse)))
	slices.Sort(names)
	best := nearest.To(key, names, min(maxMistakes, len(key)/3))
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", best)
}
