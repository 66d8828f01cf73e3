package dcap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cloister/cloister/tee/quote"
)

const maxLevels = 256

// tcbInfo is what Intel says about the TCBs of one kind of platform.
type tcbInfo struct {
	stamp
	FMSPC   hexBytes         `json:"fmspc"`
	PCEID   hexBytes         `json:"pceId"`
	TCBType int              `json:"tcbType"`
	Module  *moduleIdentity  `json:"tdxModule"`
	Modules []moduleIdentity `json:"tdxModuleIdentities"`
	Levels  []tcbLevel       `json:"tcbLevels"`
}

// moduleIdentity is a TDX module; the one in tdxModule, for modules of version 0, has neither ID nor Levels.
type moduleIdentity struct {
	ID             string          `json:"id"`
	MRSigner       hexBytes        `json:"mrsigner"`
	Attributes     hexBytes        `json:"attributes"`
	AttributesMask hexBytes        `json:"attributesMask"`
	Levels         []identityLevel `json:"tcbLevels"`
}

// verdict is what Intel says about a TCB level.
type verdict struct {
	Date       time.Time `json:"tcbDate"`
	Status     Status    `json:"tcbStatus"`
	Advisories []string  `json:"advisoryIDs"`
}

// identityLevel is a TCB level of an enclave or TDX module: those of at least this version.
type identityLevel struct {
	TCB struct {
		ISVSVN uint16 `json:"isvsvn"`
	} `json:"tcb"`
	verdict
}

// tcbLevel is a TCB level of a platform: those with at least these components.
type tcbLevel struct {
	SGX    [16]uint8
	TDX    *[16]uint8
	PCESVN uint16
	verdict
}

type component struct {
	SVN *uint8 `json:"svn"`
}

// UnmarshalJSON reads a level of version 3, whose components are lists, or version 2, whose components are members.
func (l *tcbLevel) UnmarshalJSON(data []byte) error {
	var v struct {
		TCB struct {
			SGX    []component `json:"sgxtcbcomponents"`
			TDX    []component `json:"tdxtcbcomponents"`
			PCESVN *uint16     `json:"pcesvn"`
		} `json:"tcb"`
		verdict
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	if v.TCB.PCESVN == nil {
		return fmt.Errorf("a TCB level has no pcesvn")
	}
	l.PCESVN, l.verdict = *v.TCB.PCESVN, v.verdict
	if v.TCB.SGX == nil {
		return l.version2(data)
	}
	sgx, err := components("sgxtcbcomponents", v.TCB.SGX)
	if err != nil {
		return err
	}
	l.SGX = *sgx
	if v.TCB.TDX != nil {
		l.TDX, err = components("tdxtcbcomponents", v.TCB.TDX)
	}
	return err
}

func components(name string, list []component) (*[16]uint8, error) {
	var out [16]uint8
	if len(list) != len(out) {
		return nil, fmt.Errorf("a TCB level has %d %s, expected %d", len(list), name, len(out))
	}
	for i, c := range list {
		if c.SVN == nil {
			return nil, fmt.Errorf("a TCB level has %s without svn", name)
		}
		out[i] = *c.SVN
	}
	return &out, nil
}

func (l *tcbLevel) version2(data []byte) error {
	var v struct {
		TCB map[string]json.Number `json:"tcb"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	for i := range l.SGX {
		name := fmt.Sprintf("sgxtcbcomp%02dsvn", i+1)
		n, err := v.TCB[name].Int64()
		if err != nil || n < 0 || n > 255 {
			return fmt.Errorf("a TCB level has %s %q, expected 0 to 255", name, v.TCB[name])
		}
		l.SGX[i] = uint8(n)
	}
	return nil
}

// parseTCBInfo reads verified TCB info and checks that it is about this platform.
func parseTCBInfo(body json.RawMessage, tee quote.TEE, pck *quote.PCK) (*tcbInfo, error) {
	info := new(tcbInfo)
	if err := json.Unmarshal(body, info); err != nil {
		return nil, fmt.Errorf("reading TCB info: %w", err)
	}
	switch {
	case info.Version == 2 && tee == quote.SGX:
		// No id: the version is older than TDX.
	case info.Version == 3 && info.ID == tee.String():
	default:
		return nil, fmt.Errorf("TCB info is version %d for %q, expected version 3 for %q (or 2 for SGX)", info.Version, info.ID, tee)
	}
	if !bytes.Equal(info.FMSPC, pck.FMSPC) {
		return nil, fmt.Errorf("TCB info is for FMSPC %x, expected %x", []byte(info.FMSPC), pck.FMSPC)
	}
	if !bytes.Equal(info.PCEID, pck.PCEID) {
		return nil, fmt.Errorf("TCB info is for PCE id %x, expected %x", []byte(info.PCEID), pck.PCEID)
	}
	if info.TCBType != 0 {
		return nil, fmt.Errorf("TCB info has tcbType %d, expected 0", info.TCBType)
	}
	if n := len(info.Levels); n == 0 || n > maxLevels {
		return nil, fmt.Errorf("TCB info has %d levels, expected 1 to %d", n, maxLevels)
	}
	for i := range info.Levels {
		if err := info.Levels[i].check(); err != nil {
			return nil, fmt.Errorf("TCB info: level %d: %w", i, err)
		}
		if tee == quote.TDX && info.Levels[i].TDX == nil {
			return nil, fmt.Errorf("TCB info: level %d has no tdxtcbcomponents", i)
		}
	}
	return info, nil
}
