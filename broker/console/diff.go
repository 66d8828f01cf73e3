package console

import "strings"

// diffLine is one line of a difference between two texts.
type diffLine struct {
	// Sign is "+", "-", " ", or "@" where lines that are the same were left out.
	Sign string
	// Old and New are the line's numbers, 0 for none.
	Old, New int
	Text     string
}

const (
	// diffContext is how many lines that are the same are shown around a change.
	diffContext = 3
	// maxCells bounds the work: texts that differ in more lines are shown as replaced.
	maxCells = 4 << 20
	// maxDiffLines bounds what is shown.
	maxDiffLines = 4000
)

// diff compares two texts line by line and tells how many lines were added and removed. No lines means that they are the same.
func diff(old, text string) (shown []diffLine, added, removed int) {
	if old == text {
		return nil, 0, 0
	}
	a, b := splitLines(old), splitLines(text)
	head := 0
	for head < len(a) && head < len(b) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < len(a)-head && tail < len(b)-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	var all []diffLine
	for i := range head {
		all = append(all, diffLine{" ", i + 1, i + 1, a[i]})
	}
	all = append(all, middle(a[head:len(a)-tail], b[head:len(b)-tail], head)...)
	for i := range tail {
		o, n := len(a)-tail+i, len(b)-tail+i
		all = append(all, diffLine{" ", o + 1, n + 1, a[o]})
	}
	for _, l := range all {
		switch l.Sign {
		case "+":
			added++
		case "-":
			removed++
		}
	}
	return fold(all), added, removed
}

// splitLines cuts a text into lines; that the last has no end is shown as part of it.
func splitLines(text string) []string {
	if text == "" {
		return nil
	}
	list := strings.Split(text, "\n")
	last := len(list) - 1
	if list[last] == "" {
		return list[:last]
	}
	list[last] += " (no line end)"
	return list
}

// middle compares by the longest common subsequence.
func middle(a, b []string, offset int) []diffLine {
	var out []diffLine
	del := func(i int) { out = append(out, diffLine{"-", offset + i + 1, 0, a[i]}) }
	ins := func(j int) { out = append(out, diffLine{"+", 0, offset + j + 1, b[j]}) }
	i, j := 0, 0
	if len(a)*len(b) <= maxCells {
		width := len(b) + 1
		longest := make([]int32, (len(a)+1)*width)
		for x := len(a) - 1; x >= 0; x-- {
			for y := len(b) - 1; y >= 0; y-- {
				if a[x] == b[y] {
					longest[x*width+y] = longest[(x+1)*width+y+1] + 1
				} else {
					longest[x*width+y] = max(longest[(x+1)*width+y], longest[x*width+y+1])
				}
			}
		}
		for i < len(a) && j < len(b) {
			switch {
			case a[i] == b[j]:
				out = append(out, diffLine{" ", offset + i + 1, offset + j + 1, a[i]})
				i, j = i+1, j+1
			case longest[(i+1)*width+j] >= longest[i*width+j+1]:
				del(i)
				i++
			default:
				ins(j)
				j++
			}
		}
	}
	for ; i < len(a); i++ {
		del(i)
	}
	for ; j < len(b); j++ {
		ins(j)
	}
	return out
}

// fold leaves out lines that are the same and far from any change.
func fold(all []diffLine) []diffLine {
	near := make([]bool, len(all))
	for i, l := range all {
		if l.Sign == " " {
			continue
		}
		for k := max(0, i-diffContext); k <= min(len(all)-1, i+diffContext); k++ {
			near[k] = true
		}
	}
	var out []diffLine
	for i, l := range all {
		if len(out) >= maxDiffLines {
			return append(out, diffLine{Sign: "@", Text: "more lines are not shown"})
		}
		switch {
		case near[i]:
			out = append(out, l)
		case len(out) == 0 || out[len(out)-1].Sign != "@":
			out = append(out, diffLine{Sign: "@"})
		}
	}
	return out
}
