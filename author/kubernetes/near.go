package kubernetes

import (
	"fmt"
	"maps"
	"slices"

	"github.com/agnivade/levenshtein"
)

// Bounds of a guess, in bytes and in mistakes: a longer name is no typing error, and in a short one two mistakes make another word.
const (
	maxGuess    = 60
	minGuess    = 4
	maxMistakes = 2
)

// near names the member of a mapping that may have been meant, as the end of a message; "" if none is written nearly so.
func (r rules) near(key string) string {
	if len(key) < minGuess || len(key) > maxGuess {
		return ""
	}
	names := slices.Concat(slices.Collect(maps.Keys(r.fields)), slices.Collect(maps.Keys(r.accept)), slices.Collect(maps.Keys(r.refuse)))
	slices.Sort(names)
	best, fewest := "", min(maxMistakes, len(key)/3)+1
	for _, name := range names {
		if d := levenshtein.ComputeDistance(key, name); d < fewest {
			best, fewest = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", best)
}
