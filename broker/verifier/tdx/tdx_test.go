package tdx_test

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/broker/verifier/tdx"
	"github.com/cloister/cloister/tee/eventlog"
	"github.com/cloister/cloister/test/fakedcap"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// ccLog is an event log as a guest without firmware log writes it.
func ccLog(records ...[]byte) []byte {
	head, _ := hex.DecodeString("00000000" + "03000000" + strings.Repeat("00", 20) + "25000000" + strings.Repeat("00", 24) +
		"02000000" + "0c003000" + "12002000" + "00")
	return append(append(head, bytes.Join(records, nil)...), bytes.Repeat([]byte{0xff}, 8)...)
}

func TestBindings(t *testing.T) {
	w := fakedcap.New(t, now)
	reportData := sha512.Sum384([]byte("a session"))
	initData := sha512.Sum512([]byte("init data")) // longer than MRCONFIGID
	event := eventlog.AAELData("github.com/confidential-containers PullImage busybox")
	body := fakedcap.TD15(reportData[:])
	copy(body[184:232], initData[:48])
	copy(body[472:520], eventlog.SHA384.Sum(make([]byte, 48), eventlog.SHA384.Sum(event)))
	raw := w.Quote(fakedcap.Spec{Body: body})
	once, unmeasured := eventlog.AAELRecord(4, eventlog.SHA384, event), eventlog.AAELRecord(0, eventlog.SHA384, event)
	good := ccLog(once)
	options := func(edit func(*tdx.Options)) tdx.Options {
		o := tdx.Options{ExpectedReportData: reportData[:], InitDataDigest: initData[:],
			Now: now, Root: w.Root.Certificate, Collateral: w.Source()}
		if edit != nil {
			edit(&o)
		}
		return o
	}
	changed := bytes.Clone(good)
	changed[len(changed)-12] ^= 1 // the event's data: it no longer has its digest, which is for the policy
	for name, c := range map[string]struct {
		log   []byte
		edit  func(*tdx.Options)
		fault string
	}{
		"good":                   {log: good},
		"no log":                 {},
		"no init data sent":      {edit: func(o *tdx.Options) { o.InitDataDigest = nil }},
		"other report data":      {edit: func(o *tdx.Options) { o.ExpectedReportData = bytes.Repeat([]byte{1}, 48) }, fault: "report_data"},
		"longer report data":     {edit: func(o *tdx.Options) { o.ExpectedReportData = append(reportData[:], 1) }, fault: "report_data"},
		"65 bytes":               {edit: func(o *tdx.Options) { o.ExpectedReportData = make([]byte, 65) }, fault: "65 bytes"},
		"prefix":                 {edit: func(o *tdx.Options) { o.ExpectedReportData = reportData[:32] }, fault: "report_data"},
		"no report data":         {edit: func(o *tdx.Options) { o.ExpectedReportData = nil }, fault: "no report data"},
		"offline":                {edit: func(o *tdx.Options) { o.ExpectedReportData, o.Offline = nil, true }},
		"offline, but wrong":     {edit: func(o *tdx.Options) { o.ExpectedReportData, o.Offline = []byte{1}, true }, fault: "report_data"},
		"other init data":        {edit: func(o *tdx.Options) { o.InitDataDigest = make([]byte, 32) }, fault: "mr_config_id"},
		"empty init data":        {edit: func(o *tdx.Options) { o.InitDataDigest = []byte{} }, fault: "mr_config_id"},
		"no collateral":          {edit: func(o *tdx.Options) { o.Collateral = nil }, fault: "no collateral"},
		"offline, no collateral": {edit: func(o *tdx.Options) { o.Offline, o.Collateral = true, nil }, fault: "no collateral"},
		"log of nothing":         {log: ccLog(), fault: "rtmr_3"},
		"log of RTMR 2":          {log: ccLog(eventlog.AAELRecord(3, eventlog.SHA384, event)), fault: "rtmr_2"},
		"event twice":            {log: ccLog(once, once), fault: "rtmr_3"},
		"unmeasured event":       {log: ccLog(unmeasured, once), fault: "register 0"},
		"broken log":             {log: good[:100], fault: "reading cc_eventlog"},
		"data without digest":    {log: changed},
	} {
		t.Run(name, func(t *testing.T) {
			claims, err := tdx.Verify(context.Background(), asEvidence(t, raw, c.log), options(c.edit))
			if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
				t.Fatalf("got %v, expected %q", err, c.fault)
			}
			if err != nil || c.log == nil {
				return
			}
			events := claims["uefi_event_logs"].([]any)
			if len(events) != 1 || events[0].(map[string]any)["digest_matches_event"] != (name == "good") {
				t.Errorf("events are %v", events)
			}
		})
	}
}

func TestClaims(t *testing.T) {
	w := fakedcap.New(t, now)
	body := fakedcap.TD15([]byte("report"))
	copy(body[120:128], []byte{1, 0, 0, 0xD0, 0, 0, 0, 0x80}) // debug, SEPT, PKS, KL, perfmon
	body[600] = 7
	raw := w.Quote(fakedcap.Spec{Body: body})
	o := dcap.Options{Now: now, Root: w.Root.Certificate, Collateral: w.Source()}
	claims, reportData, err := tdx.VerifyTDQuote(context.Background(), raw, o)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(reportData, body[520:584]) {
		t.Errorf("report data is %x", reportData)
	}
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"td_attributes":{"debug":true,"key_locker":true,"perfmon":true,"protection_keys":true,"septve_disable":true}`,
		`"header":{"att_key_type":"0200","reserved":"00000000","tee_type":"81000000","user_data":"` + strings.Repeat("0", 40) +
			`","vendor_id":"939a7233f79c4ca9940a0db3957f0607","version":"0500"}`,
		`"type":"0300"`, `"size":"88020000"`, `"mr_servicetd":"07` + strings.Repeat("0", 94) + `"`,
		`"tee_tcb_svn2":"05010200000000000000000000000000"`, `"platform_instance_id":"636e6174736e692d6d726f6674616c70"`,
		`"tcb_status":"UpToDate"`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("claims lack %s: %s", want, text)
		}
	}
}

func TestRefused(t *testing.T) {
	w := fakedcap.New(t, now)
	o := tdx.Options{Now: now, Root: w.Root.Certificate, Collateral: w.Source(), Offline: true}
	for name, raw := range map[string]string{
		"not JSON": "x", "no quote": "{}", "null": "null", "a list": "[]", "quote is null": `{"quote":null}`, "not base64": `{"quote":"*"}`,
		"short": `{"quote":"AAAA"}`, "long": `{"quote":"` + strings.Repeat("A", 100_000) + `"}`,
		"enclave":           string(asEvidence(t, w.Quote(fakedcap.Spec{Body: fakedcap.Enclave(nil)}), nil)),
		"log is not base64": strings.Replace(string(asEvidence(t, w.Quote(fakedcap.Spec{Body: fakedcap.TD(nil)}), nil)), "null", `"*"`, 1),
		"log is long": strings.Replace(string(asEvidence(t, w.Quote(fakedcap.Spec{Body: fakedcap.TD(nil)}), nil)), "null",
			`"`+strings.Repeat("A", 2<<20)+`"`, 1),
	} {
		if _, err := tdx.Verify(context.Background(), json.RawMessage(raw), o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
