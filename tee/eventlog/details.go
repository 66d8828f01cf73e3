package eventlog

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Details says what an event's data means, in the members that the claim
// uefi_event_logs has. Types without a known meaning have none, and so has
// data that does not fit its type: the claim then lacks what a policy may look
// for, while the raw bytes are still there. (Upstream refuses such a log.)
func (e *Event) Details() map[string]any {
	var d map[string]any
	switch e.Type.String() {
	case "EV_POST_CODE", "EV_ACTION", "EV_COMPACT_HASH", "EV_OMIT_BOOT_DEVICE_EVENTS", "EV_EFI_ACTION":
		if utf8.Valid(e.Data) {
			d = text(string(e.Data))
		}
	case "EV_PLATFORM_CONFIG_FLAGS":
		d = text(printable(e.Data))
	case "EV_EFI_PLATFORM_FIRMWARE_BLOB2", "EV_EFI_HANDOFF_TABLES2":
		d = sizedText(e.Data)
	case "EV_IPL":
		d = iplText(e.Data)
	case "EV_EVENT_TAG":
		d = tagged(e.Data)
	case "EV_EFI_VARIABLE_DRIVER_CONFIG", "EV_EFI_VARIABLE_BOOT", "EV_EFI_VARIABLE_BOOT2", "EV_EFI_VARIABLE_AUTHORITY":
		d = variable(e.Data)
	case "EV_EFI_BOOT_SERVICES_APPLICATION":
		if paths := imagePath(e.Data); paths != nil {
			d = map[string]any{"device_paths": paths}
		}
	}
	if d == nil {
		return map[string]any{}
	}
	return d
}

func text(s string) map[string]any { return map[string]any{"string": s} }

// printable is UTF-8 text without control characters, nothing when the data is
// not text. The byte 0x10 becomes a space: td-shim has it in the length before a
// kernel command line, where upstream's claims have the space.
func printable(data []byte) string {
	if !utf8.Valid(data) {
		return ""
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r == 0x10:
			return ' '
		case unicode.IsControl(r):
			return -1
		}
		return r
	}, string(data))
}

// sizedText reads a description after its length, which upstream takes to count
// itself: the last character is missing there.
func sizedText(data []byte) map[string]any {
	if len(data) == 0 {
		return nil
	}
	n := int(data[0])
	if n < 1 || n > len(data) || !utf8.Valid(data[1:n]) {
		return nil
	}
	return text(string(data[1:n]))
}

// iplText reads the event of a boot loader: UTF-16 after a full stop on Google
// Cloud, else a C string.
func iplText(data []byte) map[string]any {
	if len(data) < 2 {
		return nil
	}
	if data[0] == '.' && data[1] == 0 {
		if len(data) == 2 || len(data)%2 != 0 {
			return nil
		}
		return text(utf16Text(data[2 : len(data)-2]))
	}
	s := data
	if i := bytes.IndexByte(data, 0); i >= 0 {
		s = data[:i]
	}
	if !utf8.Valid(s) {
		return text(hex.EncodeToString(data))
	}
	return text(string(s))
}

func utf16Text(data []byte) string {
	units := make([]uint16, len(data)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(data[2*i:])
	}
	return string(utf16.Decode(units))
}

// tagged reads a tagged event, and the Attestation Agent's event in it.
func tagged(data []byte) map[string]any {
	if len(data) < 8 {
		return nil
	}
	n := binary.LittleEndian.Uint32(data[4:])
	if uint64(n) > uint64(len(data)-8) || !utf8.Valid(data[8:8+n]) {
		return nil
	}
	line := strings.ReplaceAll(string(data[8:8+n]), "\x00", "")
	d := text(line)
	if binary.LittleEndian.Uint32(data) != aaelTag {
		return d
	}
	parts := strings.SplitN(line, " ", 3)
	if len(parts) != 3 {
		return nil
	}
	d["unicode_name"] = "AAEL"
	d["data"] = map[string]any{"domain": parts[0], "operation": parts[1], "content": content(parts[2])}
	return d
}

// content is the JSON value a text is, or the text. Numbers keep their digits.
func content(s string) any {
	dec := json.NewDecoder(strings.NewReader(s))
	dec.UseNumber()
	var v any
	if !json.Valid([]byte(s)) || dec.Decode(&v) != nil {
		return s
	}
	return v
}

// variable reads UEFI_VARIABLE_DATA: GUID, two lengths, name in UTF-16, data.
func variable(data []byte) map[string]any {
	if len(data) < 32 {
		return nil
	}
	le := binary.LittleEndian
	nameLen, dataLen := le.Uint64(data[16:]), le.Uint64(data[24:])
	rest := data[32:]
	if nameLen > uint64(len(rest)/2) || dataLen > uint64(len(rest))-2*nameLen {
		return nil
	}
	name, rest := rest[:2*nameLen], rest[2*nameLen:]
	return map[string]any{
		// Upstream prints the GUID's bytes as they are stored, not in the order of the UEFI text form.
		"variable_name": fmt.Sprintf("%x-%x-%x-%x-%x", data[0:4], data[4:6], data[6:8], data[8:10], data[10:16]),

		"unicode_name":         utf16Text(name),
		"unicode_name_length":  int64(nameLen),
		"variable_data":        base64.StdEncoding.EncodeToString(rest[:dataLen]),
		"variable_data_length": int64(dataLen),
	}
}
