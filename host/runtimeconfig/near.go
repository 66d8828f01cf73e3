package runtimeconfig

import (
	"fmt"
	"strings"

	"github.com/agnivade/levenshtein"
)

// Bounds of a guess: a name that is longer is no typing error, and one with more mistakes could mean anything.
const (
	maxGuess    = 80
	maxMistakes = 2
)

// near names the key that may have been meant: the same one of another table, or one that is written nearly so.
func (b *builder) near(name string) string {
	last := name[strings.LastIndex(name, ".")+1:]
	var keys []string
	for _, s := range b.all {
		if _, key, _ := strings.Cut(s.key, "."); key == last {
			return didYouMean(s.key)
		}
		keys = append(keys, s.key)
	}
	return didYouMean(nearest(name, keys))
}

// near names the annotation that may have been meant.
func (a *annotator) near(name string) string {
	var names []string
	for _, n := range a.base.Supported() {
		names = append(names, n.Name)
	}
	return didYouMean(nearest(name, names))
}

func didYouMean(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", name)
}

// nearest is the first of the names with the fewest mistakes, or "" when each has too many.
func nearest(name string, names []string) string {
	if len(name) > maxGuess {
		return ""
	}
	best, fewest := "", maxMistakes+1
	for _, n := range names {
		if d := levenshtein.ComputeDistance(name, n); d < fewest {
			best, fewest = n, d
		}
	}
	return best
}
