package manage

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The guest's families have these names, and its lines this form; all else is left out, so that a guest can neither speak for the host nor
// break the text for who reads it.
const (
	guestName  = `((?:kata_agent|kata_guest|cloister_guest|cloister_agent|process)_[a-z0-9_]+)`
	guestLabel = `[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"`
)

var (
	guestSample = regexp.MustCompile(`^` + guestName + `(?:\{(` + guestLabel + `(?:,` + guestLabel + `)*),?\})? (\S+)$`)
	guestType   = regexp.MustCompile(`^# TYPE ` + guestName + ` (counter|gauge)$`)
	labelName   = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="(?:[^"\\]|\\.)*"`)
)

// guestFamily is what the guest says of one name.
type guestFamily struct {
	kind    string
	samples []string
}

// filterGuest keeps what is in order, by families, because a type has to come before its samples, and once.
func filterGuest(text string) string {
	if len(text) > maxGuestMetrics {
		text = text[:maxGuestMetrics]
	}
	families := map[string]*guestFamily{}
	var names []string
	family := func(name string) *guestFamily {
		f := families[name]
		if f == nil {
			f = &guestFamily{}
			families[name], names = f, append(names, name)
		}
		return f
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if len(line) > 2000 || !utf8.ValidString(line) || clean(line) != line {
			continue
		}
		if m := guestType.FindStringSubmatch(line); m != nil {
			family(m[1]).kind = m[2]
			continue
		}
		m := guestSample.FindStringSubmatch(line)
		if m == nil || m[1] == guestUp || !distinct(m[2]) {
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			continue
		}
		labels := ""
		if m[2] != "" {
			labels = "{" + m[2] + "}"
		}
		f := family(m[1])
		f.samples = append(f.samples, m[1]+labels+" "+strconv.FormatFloat(value, 'g', -1, 64))
	}
	var b strings.Builder
	for _, name := range names {
		f := families[name]
		if len(f.samples) == 0 {
			continue
		}
		if f.kind != "" {
			b.WriteString("# TYPE " + name + " " + f.kind + "\n")
		}
		for _, sample := range f.samples {
			b.WriteString(sample + "\n")
		}
	}
	return b.String()
}

// distinct says that no label is there twice.
func distinct(labels string) bool {
	var seen []string
	for _, m := range labelName.FindAllStringSubmatch(labels, -1) {
		if slices.Contains(seen, m[1]) {
			return false
		}
		seen = append(seen, m[1])
	}
	return true
}
