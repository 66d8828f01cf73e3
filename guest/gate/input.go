package gate

import (
	"encoding/json"
	"strconv"
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
func encodeInput(req proto.Message, withBytes bool) (*input, error) {
	t, err := policyinput.Encode[*ast.Term](req, termBuilder{withBytes: withBytes})
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
	b := termBuilder{}
	return &input{
		term:    b.Object([]string{"container_id", "status"}, []*ast.Term{b.String(containerID), b.Int(int64(status))}),
		secrets: &secrets{},
	}
}

func portInput(port uint16) *input {
	b := termBuilder{}
	return &input{term: b.Object([]string{"port"}, []*ast.Term{b.Uint(uint64(port))}), secrets: &secrets{}}
}

type termBuilder struct{ withBytes bool }

func (termBuilder) Null() *ast.Term       { return ast.InternedNullTerm }
func (termBuilder) Bool(v bool) *ast.Term { return ast.InternedTerm(v) }

func (termBuilder) Int(v int64) *ast.Term {
	return ast.NumberTerm(json.Number(strconv.FormatInt(v, 10)))
}

func (termBuilder) Uint(v uint64) *ast.Term {
	return ast.NumberTerm(json.Number(strconv.FormatUint(v, 10)))
}

func (termBuilder) Float(v float64) *ast.Term {
	return ast.NumberTerm(json.Number(strconv.FormatFloat(v, 'g', -1, 64)))
}

func (termBuilder) String(v string) *ast.Term {
	if !utf8.ValidString(v) {
		v = string([]rune(v)) // never equal to what a policy can say by accident
	}
	return ast.StringTerm(v)
}

func (b termBuilder) Bytes(v []byte) *ast.Term {
	if !b.withBytes {
		return ast.ArrayTerm()
	}
	out := make([]*ast.Term, len(v))
	for i, c := range v {
		out[i] = ast.InternedTerm(int(c))
	}
	return ast.ArrayTerm(out...)
}

func (termBuilder) Array(v []*ast.Term) *ast.Term { return ast.ArrayTerm(v...) }

func (termBuilder) Object(keys []string, values []*ast.Term) *ast.Term {
	items := make([][2]*ast.Term, len(keys))
	for i, k := range keys {
		items[i] = ast.Item(ast.InternedTerm(k), values[i])
	}
	return ast.ObjectTerm(items...)
}
