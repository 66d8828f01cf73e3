package refvalue

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

var (
	globalVariable = parseGUID(0x8be4df61, 0x93ca, 0x11d2, [8]byte{0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c})
	imageSecurity  = parseGUID(0xd719b2cb, 0x3d3a, 0x4596, [8]byte{0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f})
)

// secureBootEvents are the measurements of a firmware without secure boot
// keys, in the order the firmware makes them.
func secureBootEvents() []Event {
	var out []Event
	for _, v := range []struct {
		vendor guid
		name   string
		data   []byte
		about  string
	}{
		{globalVariable, "SecureBoot", []byte{0}, "secure boot is off"},
		{globalVariable, "PK", nil, "no platform key"},
		{globalVariable, "KEK", nil, "no key exchange keys"},
		{imageSecurity, "db", nil, "no allowed signers"},
		{imageSecurity, "dbx", nil, "no forbidden signers"},
	} {
		out = append(out, newEvent(7, "EV_EFI_VARIABLE_DRIVER_CONFIG", sha256.Sum256(variableData(v.vendor, v.name, v.data)),
			fmt.Sprintf("variable %s: %s", v.name, v.about)))
	}
	return append(out, separator(7))
}

// variableData is UEFI_VARIABLE_DATA of the TCG PC Client profile.
func variableData(vendor guid, name string, data []byte) []byte {
	b := append([]byte{}, vendor[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(name)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	b = append(b, utf16le(name)...)
	return append(b, data...)
}

// utf16le encodes ASCII text as firmware does; callers have checked it.
func utf16le(s string) []byte {
	out := make([]byte, 0, 2*len(s))
	for i := range len(s) {
		out = append(out, s[i], 0)
	}
	return out
}

// checkVariables refuses a variable store that holds variables: with secure
// boot keys in it PCR 7 would be another.
func checkVariables(vars []byte) error {
	fv, err := volumeAt(vars)
	if err != nil {
		return err
	}
	const (
		storeHeader = 28
		varStart    = 0x55aa
	)
	at := int(binary.LittleEndian.Uint16(fv[48:]))
	if at+storeHeader+2 > len(fv) {
		return errors.New("variable store is cut off")
	}
	if binary.LittleEndian.Uint16(fv[at+storeHeader:]) == varStart {
		return errors.New("variable store is not empty; PCR 7 is predicted for one without secure boot keys (OVMF_VARS_4M.fd)")
	}
	return nil
}
