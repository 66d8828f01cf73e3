package policyinput

import (
	"encoding/json"
	"strconv"

	"google.golang.org/protobuf/proto"
)

// Value presents m as plain Go values ready for encoding/json: map[string]any,
// []any, json.Number, string, bool, nil.
func Value(m proto.Message) (any, error) { return Encode[any](m, goBuilder{}) }

type goBuilder struct{}

func (goBuilder) Null() any           { return nil }
func (goBuilder) Bool(v bool) any     { return v }
func (goBuilder) Int(v int64) any     { return json.Number(strconv.FormatInt(v, 10)) }
func (goBuilder) Uint(v uint64) any   { return json.Number(strconv.FormatUint(v, 10)) }
func (goBuilder) String(v string) any { return v }
func (goBuilder) Array(v []any) any   { return v }

func (goBuilder) Float(v float64) any {
	return json.Number(strconv.FormatFloat(v, 'g', -1, 64))
}

func (goBuilder) Bytes(v []byte) any {
	out := make([]any, len(v))
	for i, c := range v {
		out[i] = json.Number(strconv.Itoa(int(c)))
	}
	return out
}

func (goBuilder) Object(keys []string, values []any) any {
	out := make(map[string]any, len(keys))
	for i, k := range keys {
		out[k] = values[i]
	}
	return out
}
