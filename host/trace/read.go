package trace

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Bounds of what is read back. The file is our own, but a reader may be pointed at anything.
const (
	maxFile    = 4 << 20
	maxLine    = 16 << 10
	maxEntries = 4096
)

// Trace is what is known about how one sandbox came up.
type Trace struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"`
	ID        string            `json:"id,omitempty"`
	TraceID   string            `json:"trace_id,omitempty"`
	Began     time.Time         `json:"began"`
	Attrs     map[string]string `json:"attrs,omitempty"`
	Steps     []Entry           `json:"steps"`
	// Lost is how many steps did not fit into the file.
	Lost int `json:"lost,omitempty"`
}

// Entry is one step.
type Entry struct {
	// N numbers the steps from 1; In is the step it is part of, 0 for none.
	N    int    `json:"n"`
	In   int    `json:"in,omitempty"`
	Name string `json:"name"`
	// Start is the time since the trace began.
	Start time.Duration `json:"start"`
	// Took is how long the step lasted. It is 0 for a step that has not ended.
	Took time.Duration `json:"took"`
	// Open says that the step has not ended: it goes on, or the process that did it is gone.
	Open bool `json:"open,omitempty"`
	// Error is why the step failed.
	Error string `json:"error,omitempty"`
	// Claimed says that this is the guest's word, which the host cannot check.
	Claimed bool              `json:"claimed,omitempty"`
	Attrs   map[string]string `json:"attrs,omitempty"`
}

// Load reads a file that a Recorder wrote, or is writing.
func Load(file string) (*Trace, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading a trace: %w", err)
	}
	defer f.Close()
	t, err := Parse(f)
	if err != nil {
		return nil, fmt.Errorf("reading the trace %s: %w", file, err)
	}
	return t, nil
}

// Parse reads what a Recorder wrote. A last line that is not whole is left out: its writer was killed, or is writing.
func Parse(r io.Reader) (*Trace, error) {
	s := bufio.NewScanner(io.LimitReader(r, maxFile))
	s.Buffer(nil, maxLine)
	s.Split(wholeLines)
	var t *Trace
	at := map[int]int{} // number of a step -> index
	for n := 1; s.Scan(); n++ {
		var l line
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		switch {
		case t == nil && l.Trace != 1:
			return nil, fmt.Errorf("line %d does not begin a trace of version 1", n)
		case t == nil:
			began, err := time.Parse(time.RFC3339Nano, l.Began)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
			t = &Trace{Name: text(l.Name, maxValue), Namespace: text(l.Namespace, maxValue), ID: text(l.ID, maxValue),
				TraceID: text(l.TraceID, maxName), Began: began, Attrs: printable(l.Attrs), Steps: []Entry{}}
		case l.Lost > 0:
			t.Lost = l.Lost
		case l.Step != "":
			_, twice := at[l.N]
			_, parent := at[l.In]
			if l.N <= 0 || twice || l.At == nil || *l.At < 0 || l.In != 0 && !parent || len(t.Steps) == maxEntries {
				return nil, fmt.Errorf("line %d begins no step", n)
			}
			e := Entry{N: l.N, In: l.In, Name: text(l.Step, maxName), Start: time.Duration(*l.At), Open: true, Claimed: l.Claimed,
				Attrs: printable(l.Attrs)}
			at[l.N] = len(t.Steps)
			t.Steps = append(t.Steps, e)
			if l.End != nil {
				t.Steps[at[l.N]].finish(*l.End, l.Error)
			}
		case l.End != nil:
			i, known := at[l.N]
			if !known || !t.Steps[i].Open {
				return nil, fmt.Errorf("line %d ends no step", n)
			}
			t.Steps[i].finish(*l.End, l.Error)
		}
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if t == nil {
		return nil, errors.New("it is empty")
	}
	return t, nil
}

func (e *Entry) finish(end int64, failed string) {
	e.Open, e.Error, e.Took = false, text(failed, maxError), max(0, time.Duration(end)-e.Start)
}

func printable(attrs map[string]string) map[string]string {
	if len(attrs) == 0 {
		return nil
	}
	out := map[string]string{}
	for k, v := range attrs {
		if len(out) < maxAttrs {
			out[text(k, maxKey)] = text(v, maxValue)
		}
	}
	return out
}

// wholeLines splits into lines that end with a line feed.
func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF {
		return len(data), nil, nil
	}
	return 0, nil, nil
}

// Keep moves a finished trace into dir, under its sandbox's id, and removes the oldest there beyond most. It is for sandboxes that
// failed: their own directory goes, and then nothing would tell why. A trace that is not there is no error.
func Keep(file, dir, id string, most int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keeping a trace: %w", err)
	}
	if id = filepath.Base(id); id == "." || id == ".." || id == "/" {
		return fmt.Errorf("keeping a trace: %q is no id of a sandbox", id)
	}
	if err := os.Rename(file, filepath.Join(dir, id+".jsonl")); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("keeping a trace: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("keeping a trace: %w", err)
	}
	type aged struct {
		name string
		at   time.Time
	}
	var kept []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil && filepath.Ext(e.Name()) == ".jsonl" {
			kept = append(kept, aged{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(kept, func(a, b aged) int { return b.at.Compare(a.at) })
	for _, k := range kept[min(len(kept), most):] {
		if err := os.Remove(filepath.Join(dir, k.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing an old trace: %w", err)
		}
	}
	return nil
}
