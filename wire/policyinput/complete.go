package policyinput

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Complete fills a recorded request with what Encode would have said about the fields that the record leaves out, as a
// parser of protobuf's JSON does: members that are absent get their defaults. v is what encoding/json made of a request
// of the type md. Members that the type does not have are left out.
func Complete(md protoreflect.MessageDescriptor, v any) (any, error) {
	if md.Name() == "CopyFileRequest" {
		return completeCopyFile(v)
	}
	return completeMessage(md, v, 0)
}

func completeMessage(md protoreflect.MessageDescriptor, v any, depth int) (any, error) {
	given, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s is %T, expected an object", md.Name(), v)
	}
	if depth > MaxDepth {
		return nil, fmt.Errorf("%s is nested deeper than %d", md.Name(), MaxDepth)
	}
	l := layoutOf(md)
	out := make(map[string]any, len(l.keys))
	for i, key := range l.keys {
		x, present := given[key]
		mem := l.members[i]
		switch {
		case mem.oneof != nil:
			out[key] = x
		case !present || x == nil:
			out[key] = defaultOf(mem.field)
		default:
			var err error
			if out[key], err = completeField(mem.field, x, depth); err != nil {
				return nil, fmt.Errorf("%s.%s: %w", md.Name(), key, err)
			}
		}
	}
	return out, nil
}

func defaultOf(fd protoreflect.FieldDescriptor) any {
	switch {
	case fd.IsMap():
		return map[string]any{}
	case fd.IsList():
		return []any{}
	case fd.HasPresence():
		return nil
	}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return false
	case protoreflect.StringKind:
		return ""
	case protoreflect.BytesKind:
		return []any{}
	}
	return json.Number("0")
}

func completeField(fd protoreflect.FieldDescriptor, v any, depth int) (any, error) {
	switch {
	case fd.IsMap():
		given, ok := v.(map[string]any)
		if !ok || fd.MapValue().Message() == nil {
			return v, nil
		}
		out := make(map[string]any, len(given))
		for k, x := range given {
			var err error
			if out[k], err = completeMessage(fd.MapValue().Message(), x, depth+1); err != nil {
				return nil, err
			}
		}
		return out, nil
	case fd.Message() == nil:
		return v, nil
	case fd.IsList():
		given, ok := v.([]any)
		if !ok {
			return nil, fmt.Errorf("it is %T, expected a list", v)
		}
		out := make([]any, len(given))
		for i, x := range given {
			var err error
			if out[i], err = completeMessage(fd.Message(), x, depth+1); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return completeMessage(fd.Message(), v, depth+1)
}

// completeCopyFile fills the substitute object of a CopyFileRequest. A recorder that does not know `data_sha256` leaves
// the content unknown.
func completeCopyFile(v any) (any, error) {
	given, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("CopyFileRequest is %T, expected an object", v)
	}
	zero := json.Number("0")
	out := map[string]any{"path": "", "file_type": "Unknown", "symlink_target": nil, "file_size": zero, "file_mode": zero, "dir_mode": zero,
		"uid": zero, "gid": zero, "offset": zero, "data_sha256": nil}
	for key, x := range given {
		if _, ok := out[key]; ok {
			out[key] = x
		}
	}
	return out, nil
}
