// Package nearest finds the name that was probably meant by a misspelt one.
package nearest

import "github.com/agnivade/levenshtein"

// maxWord bounds what is compared, in bytes: a longer word is no typing error.
const maxWord = 80

// To returns the first of the names that differ from word in the fewest letters, or "" if all differ in more than mistakes.
func To(word string, names []string, mistakes int) string {
	if len(word) > maxWord {
		return ""
	}
	best, fewest := "", mistakes+1
	for _, n := range names {
		if d := levenshtein.ComputeDistance(word, n); d < fewest {
			best, fewest = n, d
		}
	}
	return best
}
