package runtimeconfig

import (
	"fmt"
	"strings"

	"github.com/cloister/cloister/internal/nearest"
)

// maxMistakes bounds a guess: a name with more could mean anything.
const maxMistakes = 2

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
	return didYouMean(nearest.To(name, keys, maxMistakes))
}

// near names the annotation that may have been meant.
func (a *annotator) near(name string) string {
	var names []string
	for _, n := range a.base.Supported() {
		names = append(names, n.Name)
	}
	return didYouMean(nearest.To(name, names, maxMistakes))
}

func didYouMean(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %q?", name)
}
