package gate

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/wire/policyinput"
)

// input is a request as the policy sees it.
type input struct {
	term    *ast.Term
	secrets *secrets // filled on the first denial
}

func emptyInput() *input { return &input{term: ast.ObjectTerm(), secrets: &secrets{}} }

// encodeInput presents req as policy terms. Byte fields become empty arrays when
// the policy never looks at them: a stdin chunk would otherwise cost millions of terms.
func encodeInput(req proto.Message, withBytes bool, names names) (*input, error) {
	t, err := policyinput.Encode[*ast.Term](req, &termBuilder{withBytes: withBytes, names: names})
	if err != nil {
		return nil, err
	}
	return &input{term: t, secrets: &secrets{}}, nil
}

func setPolicyInput(text string) (*input, error) {
	if err := checkText(text); err != nil {
		return nil, err
	}
	return &input{
		term:    ast.ObjectTerm(ast.Item(ast.StringTerm("policy"), ast.StringTerm(text))),
		secrets: &secrets{},
	}, nil
}

func exitInput(containerID string, status int) *input {
	b := &termBuilder{}
	return &input{
		term:    b.Object([]string{"container_id", "status"}, []*ast.Term{b.String(containerID), b.Int(int64(status))}),
		secrets: &secrets{},
	}
}

func portInput(port uint16) *input {
	b := &termBuilder{}
	return &input{term: b.Object([]string{"port"}, []*ast.Term{b.Uint(uint64(port))}), secrets: &secrets{}}
}

// termBuilder makes terms. Requests have many of them that are alike, or small: those are shared, or made many at a time.
type termBuilder struct {
	withBytes bool
	names     names // may be nil
	spare     []ast.Term
	made      int
	items     [][2]*ast.Term // of the object in the making
}

// names are the members that requests have, as terms. A request can have any name in its maps, so their number is bounded.
type names map[string]*ast.Term

const (
	maxNames = 512
	longName = 64 // bytes; longer ones are not kept
)

func (n names) term(name string) *ast.Term {
	if t, ok := n[name]; ok {
		return t
	}
	t := ast.InternedTerm(name)
	if n != nil && len(n) < maxNames && len(name) <= longName {
		n[strings.Clone(name)] = t
	}
	return t
}

func (b *termBuilder) term(v ast.Value) *ast.Term {
	if len(b.spare) == 0 {
		b.made = min(max(8, 2*b.made), 128)
		b.spare = make([]ast.Term, b.made)
	}
	t := &b.spare[0]
	b.spare = b.spare[1:]
	t.Value = v
	return t
}

func (*termBuilder) Null() *ast.Term       { return ast.InternedNullTerm }
func (*termBuilder) Bool(v bool) *ast.Term { return ast.InternedTerm(v) }

func (b *termBuilder) Int(v int64) *ast.Term {
	if v >= 0 {
		return b.Uint(uint64(v))
	}
	return b.term(ast.Number(strconv.FormatInt(v, 10)))
}

func (b *termBuilder) Uint(v uint64) *ast.Term {
	if ast.HasInternedIntNumberTerm(int(min(v, math.MaxInt32))) {
		return ast.InternedTerm(int(v))
	}
	return b.term(ast.Number(strconv.FormatUint(v, 10)))
}

func (b *termBuilder) Float(v float64) *ast.Term {
	return b.term(ast.Number(strconv.FormatFloat(v, 'g', -1, 64)))
}

func (b *termBuilder) String(v string) *ast.Term {
	if v == "" {
		return ast.InternedEmptyString
	}
	if !utf8.ValidString(v) {
		v = string([]rune(v)) // never equal to what a policy can say by accident
	}
	return b.term(ast.String(v))
}

func (b *termBuilder) Bytes(v []byte) *ast.Term {
	if !b.withBytes {
		return ast.InternedEmptyArray
	}
	out := make([]*ast.Term, len(v))
	for i, c := range v {
		out[i] = ast.InternedTerm(int(c))
	}
	return b.Array(out)
}

func (b *termBuilder) Array(v []*ast.Term) *ast.Term {
	if len(v) == 0 {
		return ast.InternedEmptyArray
	}
	return b.term(ast.NewArray(v...))
}

func (b *termBuilder) Object(keys []string, values []*ast.Term) *ast.Term {
	if len(keys) == 0 {
		return ast.InternedEmptyObject
	}
	b.items = b.items[:0] // the object does not keep it
	for i, k := range keys {
		b.items = append(b.items, ast.Item(b.names.term(k), values[i]))
	}
	return b.term(ast.NewObject(b.items...))
}
