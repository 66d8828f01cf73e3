package pair

const (
	featureSSSE3  = 1 << 9  // leaf 1, ECX
	featureSSE41  = 1 << 19 // leaf 1, ECX
	featureSHA    = 1 << 29 // leaf 7, EBX
	highestNeeded = 7
)

// Available reports whether this processor has what Sum needs.
func Available() bool {
	if highest() < highestNeeded {
		return false
	}
	_, c := cpuid(1)
	b, _ := cpuid(7)
	return b&featureSHA != 0 && c&featureSSSE3 != 0 && c&featureSSE41 != 0
}

// blocks adds n blocks of 64 bytes each, at a and b, to two states. A state is two registers of the SHA extensions: the words F, E,
// B, A and H, G, D, C.
//
//go:noescape
func blocks(state *[4][4]uint32, a, b *byte, n int)

// cpuid asks the processor.
func cpuid(leaf uint32) (b, c uint32)

// highest is the highest leaf that cpuid knows.
func highest() uint32
