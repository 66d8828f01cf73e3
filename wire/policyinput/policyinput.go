// Package policyinput is the one copy of the contract between a request and the
// policy that judges it: the JSON shape of a protobuf request when it is bound
// to `input` in Rego.
//
// The policy author uses it to write down the requests a policy expects, the
// guest uses it to present the request it received; both therefore agree to the
// last member. The shape follows the Kata agent: every field is present with its
// default, an absent message is null, enums are numbers, bytes are arrays of
// numbers, and a field called `type` appears as `type_`.
//
// The encoder drives a Builder instead of producing JSON text, so the guest can
// build policy terms directly and the author can build plain Go values.
package policyinput

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// MaxDepth bounds the nesting of a request.
const MaxDepth = 32

// Builder makes values of type T. Object receives members in proto field order.
type Builder[T any] interface {
	Null() T
	Bool(bool) T
	Int(int64) T
	Uint(uint64) T
	Float(float64) T
	String(string) T
	Bytes([]byte) T
	Array([]T) T
	Object(keys []string, values []T) T
}

// RuleName is the name of the policy rule that judges m: the unqualified
// protobuf message name.
func RuleName(m proto.Message) string {
	return string(m.ProtoReflect().Descriptor().Name())
}

// Encode presents m through b. CopyFileRequest is replaced by an object without
// file content (see copyFile).
func Encode[T any](m proto.Message, b Builder[T]) (T, error) {
	r := m.ProtoReflect()
	if r.Descriptor().Name() == "CopyFileRequest" {
		return copyFile(r, b)
	}
	return message(r, b, 0)
}

func message[T any](m protoreflect.Message, b Builder[T], depth int) (T, error) {
	var zero T
	if depth > MaxDepth {
		return zero, fmt.Errorf("presenting %s to the policy: nested deeper than %d", m.Descriptor().FullName(), MaxDepth)
	}
	layout := layoutOf(m.Descriptor())
	values := make([]T, 0, len(layout.members))
	for _, mem := range layout.members {
		v, err := member(m, mem, b, depth)
		if err != nil {
			return zero, err
		}
		values = append(values, v)
	}
	return b.Object(layout.keys, values), nil
}

func member[T any](m protoreflect.Message, mem memberLayout, b Builder[T], depth int) (T, error) {
	if mem.oneof != nil {
		fd := m.WhichOneof(mem.oneof)
		if fd == nil {
			return b.Null(), nil
		}
		v, err := single(fd, m.Get(fd), b, depth)
		if err != nil {
			return v, err
		}
		return b.Object([]string{upperFirst(string(fd.Name()))}, []T{v}), nil
	}
	fd := mem.field
	switch {
	case fd.IsMap():
		return mapField(fd, m.Get(fd).Map(), b, depth)
	case fd.IsList():
		list := m.Get(fd).List()
		out := make([]T, list.Len())
		for i := range out {
			v, err := single(fd, list.Get(i), b, depth)
			if err != nil {
				return v, err
			}
			out[i] = v
		}
		return b.Array(out), nil
	case fd.HasPresence() && !m.Has(fd):
		return b.Null(), nil
	}
	return single(fd, m.Get(fd), b, depth)
}

func mapField[T any](fd protoreflect.FieldDescriptor, mv protoreflect.Map, b Builder[T], depth int) (T, error) {
	keys := make([]protoreflect.MapKey, 0, mv.Len())
	for k := range mv.Range {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(x, y protoreflect.MapKey) int {
		if x.String() < y.String() {
			return -1
		}
		return 1
	})
	names := make([]string, len(keys))
	values := make([]T, len(keys))
	for i, k := range keys {
		v, err := single(fd.MapValue(), mv.Get(k), b, depth)
		if err != nil {
			return v, err
		}
		names[i], values[i] = k.String(), v
	}
	return b.Object(names, values), nil
}

func single[T any](fd protoreflect.FieldDescriptor, v protoreflect.Value, b Builder[T], depth int) (T, error) {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return b.Bool(v.Bool()), nil
	case protoreflect.EnumKind:
		return b.Int(int64(v.Enum())), nil
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind,
		protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return b.Int(v.Int()), nil
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return b.Uint(v.Uint()), nil
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return b.Float(v.Float()), nil
	case protoreflect.StringKind:
		return b.String(v.String()), nil
	case protoreflect.BytesKind:
		return b.Bytes(v.Bytes()), nil
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return message(v.Message(), b, depth+1)
	}
	var zero T
	return zero, fmt.Errorf("presenting %s to the policy: unknown kind %s", fd.FullName(), fd.Kind())
}

type memberLayout struct {
	field protoreflect.FieldDescriptor
	oneof protoreflect.OneofDescriptor
}

type layout struct {
	keys    []string
	members []memberLayout
}

// layouts caches the layout of each message type; descriptors are immutable.
var layouts sync.Map // protoreflect.MessageDescriptor -> *layout

func layoutOf(md protoreflect.MessageDescriptor) *layout {
	if l, ok := layouts.Load(md); ok {
		return l.(*layout)
	}
	l := &layout{}
	seen := map[protoreflect.Name]bool{}
	fields := md.Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if od := fd.ContainingOneof(); od != nil && !od.IsSynthetic() {
			if !seen[od.Name()] {
				seen[od.Name()] = true
				l.keys = append(l.keys, string(od.Name()))
				l.members = append(l.members, memberLayout{oneof: od})
			}
			continue
		}
		name := string(fd.Name())
		if name == "type" {
			name = "type_"
		}
		l.keys = append(l.keys, name)
		l.members = append(l.members, memberLayout{field: fd})
	}
	layouts.Store(md, l)
	return l
}

func upperFirst(s string) string {
	if s == "" || s[0] < 'a' || s[0] > 'z' {
		return s
	}
	return string(s[0]-'a'+'A') + s[1:]
}

// File type bits of CopyFileRequest.file_mode.
const (
	modeType    = 0o170000
	modeRegular = 0o100000
	modeDir     = 0o040000
	modeSymlink = 0o120000
)

// copyFile builds the substitute object of a CopyFileRequest. Content is never
// shown to a policy; `data_sha256` is a Cloister addition that lets a policy
// bind it: the hex digest when the request carries a whole regular file, else null.
func copyFile[T any](m protoreflect.Message, b Builder[T]) (T, error) {
	get := func(name protoreflect.Name) protoreflect.Value {
		fd := m.Descriptor().Fields().ByName(name)
		if fd == nil {
			return protoreflect.Value{}
		}
		return m.Get(fd)
	}
	mode := uint32(get("file_mode").Uint())
	data := get("data").Bytes()
	size, offset := get("file_size").Int(), get("offset").Int()
	fileType, target, digest := "Unknown", b.Null(), b.Null()
	switch mode & modeType {
	case modeRegular:
		fileType = "Regular"
		if offset == 0 && int64(len(data)) == size {
			sum := sha256.Sum256(data)
			digest = b.String(hex.EncodeToString(sum[:]))
		}
	case modeDir:
		fileType = "Directory"
	case modeSymlink:
		fileType = "Symlink"
		if !utf8.Valid(data) {
			var zero T
			return zero, fmt.Errorf("presenting CopyFileRequest to the policy: symlink target of %s is not UTF-8", strconv.Quote(get("path").String()))
		}
		target = b.String(string(data))
	}
	return b.Object(
		[]string{"path", "file_type", "symlink_target", "file_size", "file_mode", "dir_mode", "uid", "gid", "offset", "data_sha256"},
		[]T{
			b.String(get("path").String()), b.String(fileType), target, b.Int(size), b.Uint(uint64(mode)),
			b.Uint(get("dir_mode").Uint()), b.Int(get("uid").Int()), b.Int(get("gid").Int()), b.Int(offset), digest,
		}), nil
}
