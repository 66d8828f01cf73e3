package judge

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cloister/cloister/tee/tpm"
	"github.com/cloister/cloister/wire/initdata"
)

func pcr8(digest []byte) ([]byte, error) { return initdata.PCR8(digest) }

// readPCRs reads register values in the order of a quote's selection: the binary form of tpm2-tools, or JSON with one bank.
func readPCRs(data []byte, selected []tpm.PCRSelection) (tpm.PCRValues, error) {
	if isJSON(data) {
		if len(selected) != 1 {
			return nil, fmt.Errorf("JSON has one bank, the quote selects from %d", len(selected))
		}
		return parseJSONPCRs(data, selected[0].Bank)
	}
	own, digests, err := parseToolPCRs(data)
	if err != nil {
		return nil, err
	}
	out := tpm.PCRValues{}
	for _, s := range own {
		bank := map[int][]byte{}
		for _, i := range s.PCRs {
			if len(digests) == 0 {
				return nil, errors.New("fewer values than registers")
			}
			bank[i], digests = digests[0], digests[1:]
		}
		out[s.Bank] = bank
	}
	if len(digests) > 0 {
		return nil, fmt.Errorf("%d values more than registers", len(digests))
	}
	return out, nil
}

// Layout of tpm2-tools' file, little-endian C structures: a selection (count, 16 of bank u16, size u8, bitmap 4, padding 1), a
// count of lists, and lists of 8 digests (count, each size u16 and 64 bytes).
const (
	toolSelections = 16
	toolSelection  = 8
	toolHead       = 4 + toolSelections*toolSelection
	toolDigests    = 8
	toolDigest     = 2 + 64
	toolList       = 4 + toolDigests*toolDigest
)

func parseToolPCRs(b []byte) ([]tpm.PCRSelection, [][]byte, error) {
	le := binary.LittleEndian
	if len(b) < toolHead+4 {
		return nil, nil, fmt.Errorf("%d bytes, expected at least %d", len(b), toolHead+4)
	}
	n := le.Uint32(b)
	if n > toolSelections {
		return nil, nil, fmt.Errorf("%d banks, expected at most %d", n, toolSelections)
	}
	var own []tpm.PCRSelection
	for i := range int(n) {
		s := b[4+i*toolSelection:][:toolSelection]
		sel := tpm.PCRSelection{Bank: tpm.Alg(le.Uint16(s))}
		if s[2] > 4 {
			return nil, nil, fmt.Errorf("bitmap of %d bytes, expected at most 4", s[2])
		}
		for at, bits := range s[3 : 3+s[2]] {
			for bit := range 8 {
				if bits&(1<<bit) != 0 {
					sel.PCRs = append(sel.PCRs, 8*at+bit)
				}
			}
		}
		own = append(own, sel)
	}
	lists := le.Uint32(b[toolHead:])
	if rest := len(b) - toolHead - 4; uint64(rest) != uint64(lists)*toolList {
		return nil, nil, fmt.Errorf("%d bytes of values, expected %d lists of %d", rest, lists, toolList)
	}
	var digests [][]byte
	for i := range int(lists) {
		list := b[toolHead+4+i*toolList:][:toolList]
		count := le.Uint32(list)
		if count > toolDigests {
			return nil, nil, fmt.Errorf("list of %d values, expected at most %d", count, toolDigests)
		}
		for k := range int(count) {
			d := list[4+k*toolDigest:][:toolDigest]
			size := le.Uint16(d)
			if size > 64 {
				return nil, nil, fmt.Errorf("value of %d bytes, expected at most 64", size)
			}
			digests = append(digests, d[2:2+size])
		}
	}
	return own, digests, nil
}
