// Package policytest replays recorded requests against a policy, so that its author sees what the guest would decide
// and how the policy's state moves, without a guest.
//
// A record is what guests write down at their most talkative (one JSON object per line, {"kind": rule, "request": input})
// or a list of such objects with "description" and "allowed", as tests of policies have them. Requests may leave out
// members that have their defaults. Beside the requests of the protocol there are those that the guest makes: see Kinds.
package policytest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/policyinput"
)

// MaxSize bounds a file of records, in bytes.
const MaxSize = 64 << 20

// Case is one recorded request.
type Case struct {
	Description string `json:"description,omitempty"`
	// Kind is the rule that judges it.
	Kind string `json:"kind"`
	// Allowed is the decision that is expected, nil when none is.
	Allowed *bool `json:"allowed,omitempty"`
	Request any   `json:"request"`
	// State is in some tests of Kata's policies, which do not read it either: a case finds the state that those before it have left.
	State any `json:"state,omitempty"`
}

// Read reads records in either form. Each request is completed with defaults.
func Read(r io.Reader) ([]Case, error) {
	raw, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading the requests: %w", err)
	}
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("the requests have more than %d bytes", MaxSize)
	}
	cases, err := decode(raw)
	if err != nil {
		return nil, err
	}
	if len(cases) == 0 {
		return nil, errors.New("there is no request in the file")
	}
	for i := range cases {
		if cases[i].Kind == "" {
			return nil, fmt.Errorf("request %d names no kind", i+1)
		}
		if err := checkKind(cases[i].Kind); err != nil {
			return nil, fmt.Errorf("request %d: %w", i+1, err)
		}
		if cases[i].Request, err = complete(cases[i].Kind, cases[i].Request); err != nil {
			return nil, fmt.Errorf("request %d: %w", i+1, err)
		}
	}
	return cases, nil
}

func decode(raw []byte) ([]Case, error) {
	var cases []Case
	if text := bytes.TrimSpace(raw); len(text) > 0 && text[0] == '[' {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		d.DisallowUnknownFields()
		if err := d.Decode(&cases); err != nil {
			return nil, fmt.Errorf("reading the list of requests: %w", err)
		}
		return cases, nil
	}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, MaxSize)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var c Case
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.UseNumber()
		d.DisallowUnknownFields()
		if err := d.Decode(&c); err != nil {
			return nil, fmt.Errorf("reading the request in line %d: %w", n, err)
		}
		cases = append(cases, c)
	}
	return cases, lines.Err()
}

// complete adds what a record has left out. Kinds that the guest makes itself stay as they are.
func complete(kind string, request any) (any, error) {
	if request == nil {
		request = map[string]any{}
	}
	if slices.Contains(own, kind) {
		return request, nil
	}
	if kind == storageKind {
		kind = "Storage"
	}
	return policyinput.Complete(agent.File_wire_agent_agent_proto.Messages().ByName(protoreflect.Name(kind)), request)
}

// Engine judges requests as the guest does.
type Engine interface {
	Judge(ctx context.Context, rule string, request any) error
	State(ctx context.Context) (map[string]any, error)
}

// Result is the decision about one request.
type Result struct {
	Number      int    `json:"number"` // from 1
	Kind        string `json:"kind"`
	Description string `json:"description,omitempty"`
	Allowed     bool   `json:"allowed"`
	Reason      string `json:"reason,omitempty"` // of a refusal
	// Unexpected says that the record expected the other decision, or a refusal where the record expects nothing.
	Unexpected bool `json:"unexpected"`
	// Changes of the state by this request: the new value of each member, nil for one that is gone.
	Changes map[string]any `json:"changes,omitempty"`
}

// Run asks e about each case in order and hands over the results as they come.
func Run(ctx context.Context, e Engine, cases []Case, each func(Result) error) error {
	before, err := e.State(ctx)
	if err != nil {
		return fmt.Errorf("reading the state: %w", err)
	}
	for i, c := range cases {
		err := e.Judge(ctx, c.Kind, c.Request)
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		r := Result{Number: i + 1, Kind: c.Kind, Description: c.Description, Allowed: err == nil}
		if err != nil {
			r.Reason = err.Error()
		}
		r.Unexpected = c.Allowed == nil && !r.Allowed || c.Allowed != nil && *c.Allowed != r.Allowed
		after, err := e.State(ctx)
		if err != nil {
			return fmt.Errorf("reading the state: %w", err)
		}
		r.Changes, before = changes(before, after), after
		if err := each(r); err != nil {
			return err
		}
	}
	return nil
}

func changes(before, after map[string]any) map[string]any {
	out := map[string]any{}
	keys := slices.Concat(slices.Collect(maps.Keys(before)), slices.Collect(maps.Keys(after)))
	for _, key := range keys {
		if !reflect.DeepEqual(before[key], after[key]) {
			out[key] = after[key]
		}
	}
	return out
}
