package eventlog_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/test/evidence"
)

// TestClaimsLikeUpstream compares with what upstream made of the same logs.
func TestClaimsLikeUpstream(t *testing.T) {
	for name, alg := range map[string]eventlog.Alg{
		"CCEL_AAEL_alibabacloud": eventlog.SHA384, "CCEL_data": eventlog.SHA384, "CCEL_data_csv": eventlog.SM3,
		"CCEL_data_grub": eventlog.SHA384, "CCEL_data_grub_gke": eventlog.SHA384, "CCEL_data_ovmf": eventlog.SHA384,
	} {
		t.Run(name, func(t *testing.T) {
			l, err := eventlog.Parse(evidence.Read(t, "eventlog/trustee-"+name+".bin"))
			if err != nil {
				t.Fatal(err)
			}
			var want struct {
				Events []any `json:"uefi_event_logs"`
			}
			if err := json.Unmarshal(evidence.Read(t, "eventlog/trustee-"+name+"_out.json"), &want); err != nil {
				t.Fatal(err)
			}
			var got []any
			text, err := json.Marshal(l.Claims(alg))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &got); err != nil {
				t.Fatal(err)
			}
			if len(got) != len(want.Events) {
				t.Fatalf("%d events, expected %d", len(got), len(want.Events))
			}
			for i := range got {
				if !reflect.DeepEqual(got[i], want.Events[i]) {
					g, _ := json.Marshal(got[i])
					w, _ := json.Marshal(want.Events[i])
					t.Errorf("event %d is %s\nexpected %s", i, g, w)
				}
			}
		})
	}
}

type logCase struct {
	ID, Log, Expect string
	Events          int
	Replay          map[string]map[string]string
}

// TestCCCases holds the recorded CC logs against the registers of their cases: a log must match them and nothing else.
func TestCCCases(t *testing.T) {
	ran := 0
	for _, c := range evidence.Cases[logCase](t, "eventlog") {
		want, ok := c.Replay["sha384"]
		if _, tpm := want["0"]; !ok || tpm {
			continue
		}
		ran++
		l, err := eventlog.Parse(evidence.Read(t, c.Log))
		if err != nil {
			t.Fatalf("%s: %v", c.ID, err)
		}
		registers := make([][]byte, eventlog.CCRegisters)
		for i := range registers {
			registers[i] = make([]byte, 48)
			if text, ok := want[string(rune('1'+i))]; ok {
				registers[i], _ = hex.DecodeString(text)
			}
		}
		if err := l.CheckCC(eventlog.SHA384, registers); err != nil {
			t.Errorf("%s: %v", c.ID, err)
		}
		for i := range registers {
			registers[i][5] ^= 1
			if err := l.CheckCC(eventlog.SHA384, registers); err == nil {
				t.Errorf("%s: another rtmr_%d is accepted", c.ID, i)
			}
			registers[i][5] ^= 1
		}
	}
	if ran < 8 {
		t.Errorf("%d CC logs in the cases, expected at least 8", ran)
	}
}

// ccLog is a log as a guest without firmware log writes it.
func ccLog(records ...[]byte) []byte {
	head, _ := hex.DecodeString("00000000" + "03000000" + strings.Repeat("00", 20) + "25000000" + strings.Repeat("00", 24) +
		"02000000" + "0c003000" + "12002000" + "00")
	return append(append(head, bytes.Join(records, nil)...), bytes.Repeat([]byte{0xff}, 8)...)
}

func TestCheckCC(t *testing.T) {
	data := eventlog.AAELData("a.b op {\"n\":12345678901234567890}")
	zero := make([]byte, 48)
	extended := eventlog.SHA384.Sum(zero, eventlog.SHA384.Sum(data))
	record := func(index uint32) []byte { return eventlog.AAELRecord(index, eventlog.SHA384, data) }
	noAction := record(0)
	noAction[4] = 3
	unknown := record(1)
	unknown[4] = 0x7f
	for name, c := range map[string]struct {
		log   []byte
		regs  [][]byte
		fault string
	}{
		"empty":             {ccLog(), [][]byte{zero, zero, zero, zero}, ""},
		"rtmr3":             {ccLog(record(4)), [][]byte{zero, zero, zero, extended}, ""},
		"no action":         {ccLog(noAction, record(4)), [][]byte{zero, zero, zero, extended}, ""},
		"other register":    {ccLog(record(3)), [][]byte{zero, zero, zero, extended}, "rtmr_2"},
		"missing event":     {ccLog(), [][]byte{zero, zero, zero, extended}, "rtmr_3"},
		"unmeasured, index": {ccLog(record(0)), [][]byte{zero, zero, zero, zero}, "register 0"},
		"beyond registers":  {ccLog(record(5)), [][]byte{zero, zero, zero, zero}, "register 5"},
		"unknown type":      {ccLog(unknown), [][]byte{extended, zero, zero, zero}, "unknown type"},
		"no such digest":    {ccLog(eventlog.AAELRecord(1, eventlog.SM3, data)), [][]byte{zero, zero, zero, zero}, "no sha384 digest"},
		"three registers":   {ccLog(), [][]byte{zero, zero, zero}, "3 registers"},
	} {
		l, err := eventlog.Parse(c.log)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		err = l.CheckCC(eventlog.SHA384, c.regs)
		if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: got %v, expected %q", name, err, c.fault)
		}
	}
	l, _ := eventlog.Parse(ccLog(record(4)))
	text, err := json.Marshal(l.Claims(eventlog.SHA384))
	if err != nil || !strings.Contains(string(text), `"content":{"n":12345678901234567890}`) {
		t.Errorf("claims are %s (%v)", text, err)
	}
}

func TestDetails(t *testing.T) {
	image := func(nodes string) []byte {
		path, err := hex.DecodeString(strings.ReplaceAll(nodes, " ", "") + "7fff0400")
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 32)
		b[24] = byte(len(path))
		return append(b, path...)
	}
	const app = eventlog.Type(0x80000003)
	for _, c := range []struct {
		kind eventlog.Type
		data []byte
		want string
	}{
		{app, image("03050600 0102"), `{"device_paths":["USB(1,2)"]}`},
		{app, image("030b2500 001320f5fa77" + strings.Repeat("00", 26) + "01"), `{"device_paths":["Mac(001320F5FA77,0x01)"]}`},
		{app, image("030c1b00 0100a8c0 6400a8c0 0000 bc0c 0600 01 00000000 00000000"),
			`{"device_paths":["IPv4(192.168.0.100,TCP,Static,192.168.0.1)"]}`},
		{app, image("03151400 0001020304050607 0001020304050607"), `{"device_paths":["FibreEx(0x0001020304050607,0x0001020304050607)"]}`},
		{app, image("04012a00 01000000 0008000000000000 00e02e0000000000 431202a0" + strings.Repeat("00", 12) + "0101"),
			`{"device_paths":["HD(1,MBR,0xa0021243,0x800,0x2ee000)"]}`},
		{app, image("05010c00 8000 0000 41424300"), `{"device_paths":["BBS(DEV,ABC,0)"]}`},
		{app, image("04012a00" + strings.Repeat("00", 38)), `{"device_paths":["Path(4,1,` + strings.Repeat("00", 38) + `)"]}`},
		{app, image("01010300"), `{}`},                     // a node shorter than its head
		{app, image("0101ff00 0000"), `{}`},                // a node longer than the path
		{app, append(image(""), 1, 2), `{}`},               // an empty path
		{app, bytes.Repeat([]byte{0xff}, 40), `{}`},        // a length beyond the data
		{0x80000001, bytes.Repeat([]byte{0xff}, 40), `{}`}, // the same of a variable
		{0x80000001, make([]byte, 31), `{}`},
		{0xD, []byte{'.', 0}, `{}`},
		{0xD, []byte{0xff, 0xfe, 0}, `{"string":"fffe00"}`},
		{0x1, []byte{0xff}, `{}`},
		{0xA, []byte{0xff}, `{"string":""}`},
		{0x8000000A, []byte{9, 'a'}, `{}`},
		{0x6, []byte("LEAA\x03\x00\x00\x00a b"), `{}`},
		{0x6, []byte("LEAA\xff\x00\x00\x00a b c"), `{}`},
		{0x6, []byte("LEAA\x05\x00\x00\x00a b c"),
			`{"data":{"content":"c","domain":"a","operation":"b"},"string":"a b c","unicode_name":"AAEL"}`},
		{0x80000006, []byte("anything"), `{}`},
	} {
		e := eventlog.Event{Type: c.kind, Data: c.data}
		got, err := json.Marshal(e.Details())
		if err != nil || string(got) != c.want {
			t.Errorf("%v %x: got %s (%v), expected %s", c.kind, c.data, got, err, c.want)
		}
	}
}

func FuzzClaims(f *testing.F) {
	f.Add(ccLog(eventlog.AAELRecord(4, eventlog.SHA384, eventlog.AAELData("a b {}"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := eventlog.Parse(b)
		if err != nil {
			return
		}
		if _, err := json.Marshal(l.Claims(eventlog.SHA384)); err != nil {
			t.Fatal(err)
		}
		zero := make([]byte, 48)
		_ = l.CheckCC(eventlog.SHA384, [][]byte{zero, zero, zero, zero})
	})
}
