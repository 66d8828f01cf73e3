package trace

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"
	"unicode/utf8"
)

// Columns of a waterfall: 9 + 1 + 9 + 1 + a mark + 1 + 37 + 1 + 40 = 100.
const (
	timeColumn = 9
	nameColumn = 37
	barColumn  = 40
	pageWidth  = 100
)

// node is a step with what happened inside it.
type node struct {
	Entry
	end      time.Duration
	children []*node
	critical bool
}

// Print draws a waterfall, at most 100 columns wide: a line for each step with its start, duration and a bar, nested; the critical path
// is marked. Steps that follow one another after a pause have a scale of their own.
func (t *Trace) Print(w io.Writer) error {
	out := bufio.NewWriter(w)
	title := t.Name
	if t.Namespace != "" {
		title = t.Namespace + "/" + title
	}
	if t.ID != "" && t.ID != t.Name {
		title += "  " + t.ID
	}
	fmt.Fprintf(out, "%s\n", cut(title, pageWidth))
	fmt.Fprintf(out, "began %s%s\n", t.Began.UTC().Format("2006-01-02 15:04:05.000 MST"), attrText(t.Attrs))
	groups := groupsOf(t.tree())
	if len(groups) == 0 {
		fmt.Fprintln(out, "no step has begun")
		return out.Flush()
	}
	for _, g := range groups {
		p := page{out: out, from: g[0].Start, to: g[0].end}
		for _, n := range g {
			p.to = max(p.to, n.end)
		}
		markCritical(g, p.to)
		fmt.Fprintf(out, "\n%*s %*s   step\n", timeColumn, "start", timeColumn, "took")
		for _, n := range g {
			p.print(n, 0)
		}
	}
	t.legend(out)
	return out.Flush()
}

func (t *Trace) legend(out io.Writer) {
	var open, claimed, failed bool
	for _, e := range t.Steps {
		open, claimed, failed = open || e.Open, claimed || e.Claimed, failed || e.Error != ""
	}
	notes := []string{"* critical path"}
	for _, n := range []struct {
		on   bool
		text string
	}{{claimed, "~ the guest's word"}, {open, "> has not ended"}, {failed, "x failed"}} {
		if n.on {
			notes = append(notes, n.text)
		}
	}
	fmt.Fprintf(out, "\n%s\n", strings.Join(notes, ", "))
	if t.Lost > 0 {
		fmt.Fprintf(out, "%d later steps did not fit and are not shown\n", t.Lost)
	}
}

// tree nests the steps. What the guest claims comes under the host's step in whose time it lies.
func (t *Trace) tree() []*node {
	now := time.Duration(0)
	for _, e := range t.Steps {
		now = max(now, e.Start+e.Took)
	}
	byNumber := map[int]*node{}
	var all, roots []*node
	for _, e := range t.Steps {
		n := &node{Entry: e, end: e.Start + e.Took}
		if e.Open {
			n.end = max(now, e.Start)
		}
		byNumber[e.N] = n
		all = append(all, n)
	}
	for _, n := range all {
		switch parent := byNumber[n.In]; {
		case n.Claimed:
		case parent != nil:
			parent.children = append(parent.children, n)
		default:
			roots = append(roots, n)
		}
	}
	// The longer claims first, so that the shorter find them.
	var claims []*node
	for _, n := range all {
		if n.Claimed {
			claims = append(claims, n)
		}
	}
	sort.SliceStable(claims, func(i, j int) bool { return claims[i].Took > claims[j].Took })
	for _, c := range claims {
		if in := innermost(roots, c); in != nil {
			in.children = append(in.children, c)
		} else {
			roots = append(roots, c)
		}
	}
	sortNodes(roots)
	return roots
}

func sortNodes(nodes []*node) {
	slices.SortStableFunc(nodes, func(a, b *node) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.N, b.N)) })
	for _, n := range nodes {
		sortNodes(n.children)
	}
}

// innermost is the deepest step in whose time the middle of c lies; nil when there is none.
func innermost(nodes []*node, c *node) *node {
	middle := c.Start + c.Took/2
	for _, n := range nodes {
		if n == c || middle < n.Start || middle > n.end || n.Claimed && n.Took < c.Took {
			continue
		}
		if in := innermost(n.children, c); in != nil {
			return in
		}
		return n
	}
	return nil
}

// groupsOf parts the topmost steps where a pause is longer than both a second and what was before it.
func groupsOf(roots []*node) [][]*node {
	var groups [][]*node
	var from, to time.Duration
	for _, n := range roots {
		if len(groups) == 0 || n.Start-to > max(time.Second, to-from) {
			groups = append(groups, nil)
			from, to = n.Start, n.end
		}
		g := &groups[len(groups)-1]
		*g = append(*g, n)
		to = max(to, n.end)
	}
	return groups
}

// markCritical marks the steps that the end waited for: from the end backwards, always the one that ended last before.
func markCritical(nodes []*node, end time.Duration) {
	left := slices.Clone(nodes)
	for {
		var last *node
		for _, n := range left {
			if !n.Claimed && !n.critical && n.end <= end && (last == nil || n.end > last.end || n.end == last.end && n.Start < last.Start) {
				last = n
			}
		}
		if last == nil {
			return
		}
		last.critical = true
		markCritical(last.children, last.end)
		end = last.Start
	}
}

// page draws steps on one scale.
type page struct {
	out      io.Writer
	from, to time.Duration
}

func (p page) print(n *node, depth int) {
	mark := " "
	switch {
	case n.Error != "":
		mark = "x"
	case n.Open:
		mark = ">"
	case n.Claimed:
		mark = "~"
	case n.critical:
		mark = "*"
	}
	took := clock(n.Took)
	if n.Open {
		took = "-"
	}
	name := strings.Repeat("  ", min(depth, 10)) + n.Name
	if who := n.Attrs["container"]; who != "" {
		name += " " + who
	}
	fmt.Fprintln(p.out, strings.TrimRight(fmt.Sprintf("%*s %*s %s %-*s %s", timeColumn, clock(n.Start), timeColumn, took, mark, nameColumn,
		cut(name, nameColumn), p.bar(n)), " "))
	for _, l := range wrap("error: "+n.Error, pageWidth-2*timeColumn-4) {
		if n.Error != "" {
			fmt.Fprintf(p.out, "%*s%s\n", 2*timeColumn+4, "", l)
		}
	}
	for _, c := range n.children {
		p.print(c, depth+1)
	}
}

// bar is at least one character long, at the place of the step in the time that is shown.
func (p page) bar(n *node) string {
	all := max(1, p.to-p.from)
	at := func(d time.Duration) int {
		return int(float64(min(max(0, d-p.from), all)) / float64(all) * barColumn)
	}
	from := min(at(n.Start), barColumn-1)
	to := max(at(n.end), from+1)
	fill := "="
	switch {
	case n.Error != "":
		fill = "x"
	case n.Open:
		fill = ">"
	case n.Claimed:
		fill = "~"
	case !n.critical:
		fill = "-"
	}
	return strings.Repeat(" ", from) + strings.Repeat(fill, to-from)
}

// clock is a time in at most 9 characters.
func clock(d time.Duration) string {
	switch {
	case d < 1000*time.Second:
		return fmt.Sprintf("%.3fs", d.Seconds())
	case d < 100*time.Hour:
		d = d.Round(time.Second)
		return fmt.Sprintf("%dh%02dm%02ds", d/time.Hour, d/time.Minute%60, d/time.Second%60)
	}
	return fmt.Sprintf("%dh", min(d/time.Hour, 9999999))
}

func attrText(attrs map[string]string) string {
	var out strings.Builder
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		fmt.Fprintf(&out, ", %s %s", k, attrs[k])
	}
	return cut(out.String(), pageWidth-len("began 2006-01-02 15:04:05.000 UTC"))
}

// cut shortens a text to so many characters.
func cut(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-2]) + ".."
}

// wrap breaks a text into lines of at most so many characters, at spaces where there are some.
func wrap(s string, most int) []string {
	var lines []string
	r := []rune(strings.TrimRight(s, " "))
	for len(r) > most {
		at := most
		for i := most; i > most/2; i-- {
			if r[i] == ' ' {
				at = i
				break
			}
		}
		lines = append(lines, strings.TrimRight(string(r[:at]), " "))
		r = []rune(strings.TrimLeft(string(r[at:]), " "))
	}
	return append(lines, string(r))
}
