package gate

import "github.com/open-policy-agent/opa/v1/ast"

// memory remembers, within one evaluation, what rules and calls of functions have come to (topdown.VirtualCache). The engine
// keeps one and uses it for every decision: OPA's own makes a tree of maps for each, which is a quarter of all that a decision
// allocates.
type memory struct {
	frames []*results // the last one is in use; each `with` puts one on top
}

// results are a hash table of what was found, with all keys in one list.
type results struct {
	slots   []int32 // index of an entry and one, 0 is free; their number is a power of two
	entries []result
	keys    []*ast.Term
}

type result struct {
	hash     uint64
	from, to int32     // in keys
	value    *ast.Term // nil for what is undefined
}

const (
	fewResults  = 256
	keptResults = 2048 // a table that has grown beyond is not kept for the next decision
)

func newMemory() *memory { return &memory{frames: []*results{{}}} }

// forget makes the memory ready for the next evaluation.
func (m *memory) forget() {
	clear(m.frames[1:])
	m.frames = m.frames[:1]
	r := m.frames[0]
	if len(r.entries) > keptResults {
		*r = results{}
		return
	}
	clear(r.slots)
	clear(r.entries)
	clear(r.keys)
	r.entries, r.keys = r.entries[:0], r.keys[:0]
}

func (m *memory) top() *results { return m.frames[len(m.frames)-1] }

// Push implements topdown.VirtualCache.
func (m *memory) Push() { m.frames = append(m.frames, &results{}) }

// Pop implements topdown.VirtualCache.
func (m *memory) Pop() {
	m.frames[len(m.frames)-1] = nil
	m.frames = m.frames[:len(m.frames)-1]
}

// Get implements topdown.VirtualCache: the value of ref, or true for one that is known to be undefined.
func (m *memory) Get(ref ast.Ref) (*ast.Term, bool) {
	e := m.top().find(ref, hashOf(ref))
	if e == nil {
		return nil, false
	}
	return e.value, e.value == nil
}

// Put implements topdown.VirtualCache. Without a value ref is undefined. OPA uses the list behind ref again, so it is copied.
func (m *memory) Put(ref ast.Ref, value *ast.Term) {
	r, hash := m.top(), hashOf(ref)
	if e := r.find(ref, hash); e != nil {
		e.value = value
		return
	}
	from := int32(len(r.keys))
	r.keys = append(r.keys, ref...)
	r.entries = append(r.entries, result{hash: hash, from: from, to: int32(len(r.keys)), value: value})
	if 2*len(r.entries) > len(r.slots) {
		r.grow()
		return
	}
	r.place(len(r.entries) - 1)
}

// Keys implements topdown.VirtualCache: what has a value.
func (m *memory) Keys() []ast.Ref {
	r := m.top()
	var refs []ast.Ref
	for _, e := range r.entries {
		if e.value != nil {
			refs = append(refs, ast.Ref(r.keys[e.from:e.to]).Copy())
		}
	}
	return refs
}

func (r *results) find(ref ast.Ref, hash uint64) *result {
	if len(r.slots) == 0 {
		return nil
	}
	mask := uint64(len(r.slots) - 1)
	for i := hash & mask; r.slots[i] != 0; i = (i + 1) & mask {
		if e := &r.entries[r.slots[i]-1]; e.hash == hash && sameTerms(r.keys[e.from:e.to], ref) {
			return e
		}
	}
	return nil
}

func (r *results) place(entry int) {
	mask := uint64(len(r.slots) - 1)
	i := r.entries[entry].hash & mask
	for r.slots[i] != 0 {
		i = (i + 1) & mask
	}
	r.slots[i] = int32(entry) + 1
}

func (r *results) grow() {
	r.slots = make([]int32, max(fewResults, 2*len(r.slots)))
	for i := range r.entries {
		r.place(i)
	}
}

func hashOf(ref ast.Ref) uint64 {
	hash := uint64(len(ref))
	for _, t := range ref {
		hash = (hash ^ uint64(t.Hash())) * 0x9e3779b97f4a7c15
		hash ^= hash >> 29
	}
	return hash
}

func sameTerms(a []*ast.Term, b ast.Ref) bool {
	if len(a) != len(b) {
		return false
	}
	for i, t := range a {
		if t != b[i] && !t.Equal(b[i]) {
			return false
		}
	}
	return true
}
