package tpm

import (
	"crypto"
	"fmt"
)

// PCRValues holds register values by bank and index.
type PCRValues map[Alg]map[int][]byte

// PCRDigest computes the digest a quote carries: h over the selected values,
// in the order of the selections, ascending inside each. h is the hash of the
// signing scheme, not of the banks.
func PCRDigest(selections []PCRSelection, values PCRValues, h crypto.Hash) ([]byte, error) {
	if !h.Available() {
		return nil, fmt.Errorf("computing PCR digest: hash %d is not available", h)
	}
	d := h.New()
	for _, s := range selections {
		size, ok := bankSize(s.Bank)
		if !ok {
			return nil, fmt.Errorf("computing PCR digest: unknown bank %v", s.Bank)
		}
		for _, i := range s.PCRs {
			v, ok := values[s.Bank][i]
			if !ok {
				return nil, fmt.Errorf("computing PCR digest: the quote selects %v:%d but no value was given", s.Bank, i)
			}
			if len(v) != size {
				return nil, fmt.Errorf("computing PCR digest: %v:%d is %d bytes, expected %d", s.Bank, i, len(v), size)
			}
			d.Write(v)
		}
	}
	return d.Sum(nil), nil
}

func bankSize(a Alg) (int, bool) {
	if a == AlgSM3 {
		return 32, true
	}
	h, ok := a.Hash()
	if !ok {
		return 0, false
	}
	return h.Size(), true
}
