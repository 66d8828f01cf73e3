package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Anchor is an entry that was seen earlier, which shows lines that were cut off the end of a log since.
type Anchor struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

// ParseAnchor reads SEQ:HASH.
func ParseAnchor(text string) (Anchor, error) {
	seq, hash, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil || !regexp.MustCompile(`\A[0-9a-f]{64}\z`).MatchString(hash) {
		return Anchor{}, fmt.Errorf("head is %.96q, want the number of an entry, a colon and its hash of 64 hex digits", text)
	}
	return Anchor{n, hash}, nil
}

// Chain is what was found out about the log of one replica.
type Chain struct {
	Path    string `json:"path"`
	Replica string `json:"replica,omitempty"`
	Files   int    `json:"files"`
	// First and Last are numbers of entries; 0 means that there are none. Entries before First were removed, which an entry records.
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Head  string `json:"head"`
	// Torn says that half a line stands at the end: a broker is writing it, or was killed when it did. It was never acted on.
	Torn bool `json:"torn,omitempty"`
}

// Report is what was found out about some logs.
type Report struct {
	Chains []Chain `json:"chains"`
	// Anchors is how many heads were given and found.
	Anchors int `json:"anchors"`
}

// Fault is the first line of a log that is wrong.
type Fault struct {
	File string
	Line uint64 // of the file, from 1
	Err  error
}

// Error is part of error.
func (f *Fault) Error() string { return fmt.Sprintf("%s, line %d: %v", f.File, f.Line, f.Err) }

// Unwrap is part of error.
func (f *Fault) Unwrap() error { return f.Err }

// Checker checks entries that come one after the other, and keeps nothing of them.
type Checker struct {
	Chain
	prev    string
	missing string          // the status of the entry that must record what was removed before First; "" when there is nothing
	anchors map[Anchor]bool // whether each was found
}

// NewChecker makes a Checker that looks out for anchors.
func NewChecker(path string, anchors ...Anchor) *Checker {
	c := &Checker{Chain: Chain{Path: path, Head: Genesis()}, anchors: map[Anchor]bool{}}
	for _, a := range anchors {
		c.anchors[a] = a == Anchor{0, c.Head} // which stands before every log
	}
	return c
}

// Holds reports whether an anchor was among the entries.
func (c *Checker) Holds(a Anchor) bool { return c.anchors[a] }

// Add checks the next entry. The line may be nil where there is none.
func (c *Checker) Add(e Entry, line []byte) error {
	if c.First == 0 {
		c.prev, c.Replica = Genesis(), e.Replica
		if e.Seq > 1 {
			c.Last, c.prev, c.missing = e.Seq-1, e.Prev, fmt.Sprintf(removedStatus, e.Seq-1, e.Prev)
		}
	}
	if err := follows(e, c.Last, c.prev, line); err != nil {
		return err
	}
	if e.Replica != c.Replica {
		return fmt.Errorf("entry %d is of replica %.64q, those before it of %.64q", e.Seq, e.Replica, c.Replica)
	}
	if c.First == 0 {
		c.First = e.Seq
	}
	if e.Event == EventRemoved && e.Status == c.missing {
		c.missing = ""
	}
	c.Last, c.prev, c.Head = e.Seq, e.Hash, e.Hash
	if a := (Anchor{e.Seq, e.Hash}); len(c.anchors) > 0 {
		if _, wanted := c.anchors[a]; wanted {
			c.anchors[a] = true
		}
	}
	return nil
}

// End says what can only be known when all entries were seen.
func (c *Checker) End() error {
	if c.missing != "" {
		return &Fault{c.Path, 1, fmt.Errorf("the log begins with entry %d, and no entry records that those before it were removed", c.First)}
	}
	return nil
}

// Verify checks every entry of a log: of a folder with the logs of all replicas, of one log named by its current file, or of one full
// file. It reads with bounded memory, also while a broker writes. The error is a *Fault that names the first line that is wrong, or
// says which anchor was not found.
func Verify(ctx context.Context, path string, anchors ...Anchor) (Report, error) {
	var r Report
	info, err := os.Stat(path)
	if err != nil {
		return r, fmt.Errorf("opening the audit log: %w", err)
	}
	paths := []string{path}
	if info.IsDir() {
		if paths, err = chains(path); err != nil {
			return r, err
		}
	}
	held := map[Anchor]bool{}
	owners := map[string]string{}
	for _, p := range paths {
		c := NewChecker(p, anchors...)
		if err := c.log(ctx); err != nil {
			return r, err
		}
		if other, twice := owners[c.Replica]; twice && c.First > 0 {
			return r, fmt.Errorf("%s and %s are both of replica %q: two brokers had one name, or one log was copied", other, p, c.Replica)
		}
		if c.First > 0 {
			owners[c.Replica] = p
		}
		r.Chains = append(r.Chains, c.Chain)
		for _, a := range anchors {
			held[a] = held[a] || c.Holds(a)
		}
	}
	for _, a := range anchors {
		if !held[a] {
			return r, fmt.Errorf("no log has entry %d with hash %.16s: lines that were there when it was noted are gone, or it is of another log", a.Seq, a.Hash)
		}
		r.Anchors++
	}
	return r, nil
}

// log checks all files of a log. Files are looked for again before each one: a broker may put the current one aside at any time.
func (c *Checker) log(ctx context.Context) error {
	for {
		next, current, err := c.next()
		if err != nil {
			return err
		}
		size, err := c.file(ctx, next, current)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return err
		}
		if size > 0 {
			c.Files++
		}
		if current {
			if isFull(c.Path) { // one file of a log, which begins where it begins
				return nil
			}
			return c.End()
		}
	}
}

// errMoved says that a file is not the expected one any more, because it has just been put aside.
var errMoved = errors.New("the file was put aside")

// next is the file that goes on after the last entry.
func (c *Checker) next() (string, bool, error) {
	full, err := fullFiles(c.Path)
	if err != nil {
		return "", false, err
	}
	for _, p := range full {
		if c.First == 0 || p.first == c.Last+1 {
			return p.path, false, nil
		}
		if p.first > c.Last+1 {
			return "", false, &Fault{p.path, 1, fmt.Errorf("entries %d to %d are missing before it", c.Last+1, p.first-1)}
		}
	}
	return c.Path, true, nil
}

// file checks the entries of one file and returns its size.
func (c *Checker) file(ctx context.Context, path string, current bool) (int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if current {
			if _, again, err := c.next(); err == nil && !again {
				return 0, errMoved
			}
			return 0, nil // a broker that ended between putting one file aside and beginning the next
		}
		return 0, errMoved // removed by keep_files
	}
	if err != nil {
		return 0, fmt.Errorf("opening the audit log: %w", err)
	}
	defer f.Close()
	from, err := markOf(f)
	switch {
	case !current && errors.Is(err, io.EOF):
		return 0, &Fault{path, 1, errors.New("the file is empty: its entries are missing")}
	case errors.Is(err, io.EOF):
		return 0, nil
	case current && errors.Is(err, io.ErrUnexpectedEOF):
		c.Torn = true
		return 0, nil
	case err != nil:
		return 0, &Fault{path, 1, err}
	case current && c.First > 0 && from.seq > c.Last:
		if _, again, err := c.next(); err == nil && !again {
			return 0, errMoved
		}
	}
	if c.First > 0 {
		from = mark{seq: c.Last, prev: c.prev}
	}
	begin := from.seq
	end, err := verify(f, from, func(e Entry, _ int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return c.Add(e, nil)
	})
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case errors.Is(err, io.ErrUnexpectedEOF) && (current || !exists(c.Path)):
		c.Torn = true
	default:
		return 0, &Fault{filepath.Clean(path), max(c.Last, begin) - begin + 1, err}
	}
	return end, nil
}

func isFull(path string) bool {
	parts := strings.Split(filepath.Base(path), ".")
	if len(parts) < 3 {
		return false
	}
	_, ok := number(strings.Join(parts[len(parts)-2:], "."))
	return ok
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
