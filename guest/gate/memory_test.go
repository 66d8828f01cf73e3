package gate

import (
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

func TestMemory(t *testing.T) {
	m := newMemory()
	key := func(n int) ast.Ref { return ast.Ref{ast.VarTerm("f"), ast.IntNumberTerm(n), ast.StringTerm("x")} }
	for round := range 2 { // the second finds nothing of the first
		shared := make(ast.Ref, 0, 4) // OPA uses the list behind a key again
		for n := range 3000 {
			if v, undefined := m.Get(key(n)); v != nil || undefined {
				t.Fatalf("round %d: %d is there before it was put", round, n)
			}
			shared = append(shared[:0], key(n)...)
			if n%3 == 0 {
				m.Put(shared, nil)
			} else {
				m.Put(shared, ast.IntNumberTerm(-n))
			}
		}
		for n := range 3000 {
			v, undefined := m.Get(key(n))
			if undefined != (n%3 == 0) || !undefined && !v.Equal(ast.IntNumberTerm(-n)) {
				t.Fatalf("round %d: %d is %v, %v", round, n, v, undefined)
			}
		}
		m.Push()
		if v, undefined := m.Get(key(1)); v != nil || undefined {
			t.Error("a frame on top sees what is below it")
		}
		m.Put(key(1), ast.StringTerm("top"))
		m.Pop()
		if v, _ := m.Get(key(1)); !v.Equal(ast.IntNumberTerm(-1)) {
			t.Errorf("the frame on top has left %v", v)
		}
		if v, _ := m.Get(key(1)[:2]); v != nil {
			t.Error("the beginning of a key has a value")
		}
		if got := len(m.Keys()); got != 2000 {
			t.Errorf("%d keys have values, want 2000", got)
		}
		m.Push() // an evaluation that ends early leaves its frames
		m.forget()
	}
}
