package dcap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/cloister/cloister/tee/quote"
)

// qeIdentity is what Intel says about a quoting enclave.
type qeIdentity struct {
	stamp
	MiscSelect     hexBytes        `json:"miscselect"`
	MiscSelectMask hexBytes        `json:"miscselectMask"`
	Attributes     hexBytes        `json:"attributes"`
	AttributesMask hexBytes        `json:"attributesMask"`
	MRSigner       hexBytes        `json:"mrsigner"`
	ISVProdID      *uint16         `json:"isvprodid"`
	Levels         []identityLevel `json:"tcbLevels"`
}

func parseQEIdentity(body json.RawMessage, tee quote.TEE) (*qeIdentity, error) {
	id := new(qeIdentity)
	if err := json.Unmarshal(body, id); err != nil {
		return nil, fmt.Errorf("reading QE identity: %w", err)
	}
	want := "QE"
	if tee == quote.TDX {
		want = "TD_QE"
	}
	if id.Version != 2 || id.ID != want {
		return nil, fmt.Errorf("QE identity is version %d of %q, expected version 2 of %q", id.Version, id.ID, want)
	}
	if id.ISVProdID == nil {
		return nil, fmt.Errorf("QE identity has no isvprodid")
	}
	return id, checkLevels("QE identity", id.Levels)
}

// checkLevels checks the levels of an enclave or module.
func checkLevels(what string, levels []identityLevel) error {
	if n := len(levels); n == 0 || n > maxLevels {
		return fmt.Errorf("%s has %d levels, expected 1 to %d", what, n, maxLevels)
	}
	for i, l := range levels {
		if !slices.Contains(identityStatuses, l.Status) {
			return fmt.Errorf("%s: level %d has TCB status %q, expected one of %q", what, i, l.Status, identityStatuses)
		}
	}
	return nil
}

// check holds the quoting enclave against its identity and returns its level.
func (id *qeIdentity) check(r *quote.EnclaveReport) (*identityLevel, error) {
	if err := masked("QE MISCSELECT", r.MiscSelect, id.MiscSelect, id.MiscSelectMask); err != nil {
		return nil, err
	}
	if err := masked("QE ATTRIBUTES", r.Attributes, id.Attributes, id.AttributesMask); err != nil {
		return nil, err
	}
	if !bytes.Equal(r.MRSigner, id.MRSigner) {
		return nil, fmt.Errorf("QE MRSIGNER = %x, expected %x", r.MRSigner, []byte(id.MRSigner))
	}
	if r.ProdID() != *id.ISVProdID {
		return nil, fmt.Errorf("QE ISVPRODID = %d, expected %d", r.ProdID(), *id.ISVProdID)
	}
	return matchSVN("QE ISVSVN", id.Levels, r.SVN())
}

// masked compares the bits of got that mask selects. Bits wanted outside the mask can never match, as in Intel's verifier.
func masked(what string, got, want, mask []byte) error {
	if len(want) != len(got) || len(mask) != len(got) {
		return fmt.Errorf("%s has %d bytes, the collateral's value and mask have %d and %d", what, len(got), len(want), len(mask))
	}
	for i := range got {
		if got[i]&mask[i] != want[i] {
			return fmt.Errorf("%s = %x, expected %x under the mask %x", what, got, want, mask)
		}
	}
	return nil
}

// matchSVN finds the level of a version: the first, newest first, that it reaches.
func matchSVN(what string, levels []identityLevel, svn uint16) (*identityLevel, error) {
	for i := range levels {
		if levels[i].TCB.ISVSVN <= svn {
			return &levels[i], nil
		}
	}
	lowest := levels[len(levels)-1].TCB.ISVSVN
	return nil, notSupported("%s = %d is below every TCB level (TCB_NOT_SUPPORTED), the lowest is %d", what, svn, lowest)
}
