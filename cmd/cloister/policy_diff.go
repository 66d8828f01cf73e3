package main

import (
	"errors"
	"fmt"

	"github.com/cloister/cloister/author/policyview"
)

// policyPair is the policy of one object in two files; a side that lacks it is nil.
type policyPair struct {
	object        string // empty where each file has one policy: then they are compared whatever they are called
	before, after *policyview.Policy
}

// objectDiff is what differs in the policy of one object.
type objectDiff struct {
	Object  string              `json:"object"`
	Only    string              `json:"only,omitempty"` // the side that has the policy: old or new; empty for both
	Changes []policyview.Change `json:"changes,omitempty"`
}

// policyPairs are the policies of two files, those of the same object together, in the order of the first file.
func (a *app) policyPairs(before, after string) ([]policyPair, error) {
	var sides [2][]foundPolicy
	var views [2][]*policyview.Policy
	for i, file := range []string{before, after} {
		var err error
		if sides[i], err = a.policyTexts(file); err != nil {
			return nil, err
		}
		for _, f := range sides[i] {
			p, err := parseView(file, f.text)
			if err != nil {
				return nil, err
			}
			views[i] = append(views[i], p)
		}
	}
	if len(sides[0]) == 1 && len(sides[1]) == 1 {
		return []policyPair{{"", views[0][0], views[1][0]}}, nil
	}
	var pairs []policyPair
	index := map[string]int{}
	for side := range sides {
		seen := map[string]int{}
		for i, f := range sides[side] {
			// The same name in several namespaces: the first of one file is compared with the first of the other.
			seen[f.object]++
			key := fmt.Sprint(f.object, "\x00", seen[f.object])
			at, known := index[key]
			if !known {
				at = len(pairs)
				index[key] = at
				pairs = append(pairs, policyPair{object: f.object})
			}
			if side == 0 {
				pairs[at].before = views[side][i]
			} else {
				pairs[at].after = views[side][i]
			}
		}
	}
	return pairs, nil
}

// printDiff prints what differs in pairs of policies, which is an error.
func (a *app) printDiff(pairs []policyPair, values bool) error {
	places, single := 0, len(pairs) == 1 && pairs[0].object == ""
	diffs := []objectDiff{}
	for _, p := range pairs {
		d := objectDiff{Object: p.object}
		switch {
		case p.before == nil:
			d.Only = "new"
		case p.after == nil:
			d.Only = "old"
		default:
			d.Changes = policyview.Diff(p.before, p.after)
		}
		if places += len(d.Changes); d.Only != "" {
			places++
		}
		if d.Only != "" || len(d.Changes) > 0 {
			diffs = append(diffs, d)
		}
	}
	if a.json {
		var out any = diffs
		if single {
			var changes []policyview.Change
			if len(diffs) > 0 {
				changes = diffs[0].Changes
			}
			out = changes
		}
		if err := a.printJSON(out); err != nil {
			return err
		}
	} else {
		for _, d := range diffs {
			switch lines := policyview.Lines(d.Changes, values); {
			case d.Only == "new":
				fmt.Fprintf(a.stdout, "+ the policy of %s\n", d.Object)
			case d.Only == "old":
				fmt.Fprintf(a.stdout, "- the policy of %s\n", d.Object)
			default:
				if !single {
					fmt.Fprintf(a.stdout, "%s\n", d.Object)
				}
				for _, line := range lines {
					if !single {
						line = "  " + line
					}
					fmt.Fprintln(a.stdout, line)
				}
			}
		}
	}
	switch places {
	case 0:
		return nil
	case 1:
		return errors.New("the policies differ in one place")
	}
	return fmt.Errorf("the policies differ in %d places", places)
}
