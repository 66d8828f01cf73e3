package sample_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/verifier/sample"
)

var on = sample.Options{Config: sample.Config{Insecure: true}, ExpectedReportData: []byte("nonce")}

const good = `{"svn":"1","report_data":"bm9uY2U="}`

func TestVerify(t *testing.T) {
	o := on
	o.InitDataDigest = []byte("init")
	claims, err := sample.Verify(context.Background(), json.RawMessage(good), o)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"debug":false,"init_data":"aW5pdA==","launch_digest":"abcde","platform_version":{"major":1,"minor":4},` +
		`"report_data":"bm9uY2U=","svn":"1"}`
	if string(text) != want {
		t.Errorf("claims = %s, expected %s", text, want)
	}
	claims, err = sample.VerifyDevice(context.Background(), json.RawMessage(good), on)
	if err != nil || len(claims) != 2 || claims["svn"] != "1" {
		t.Errorf("device: %v, %v", claims, err)
	}
}

func TestRefused(t *testing.T) {
	off, unbound := on, on
	off.Insecure, unbound.ExpectedReportData = false, nil
	for _, c := range []struct {
		raw string
		o   sample.Options
		why string
	}{
		{good, off, "insecure_sample"},
		{good, sample.Options{Offline: true}, "insecure_sample"},
		{good, unbound, "no report data"},
		{`{"svn":"1","report_data":"bm9uY2UA"}`, on, "another session"},
		{`{"svn":"1"}`, on, "another session"},
		{`{"svn":"1","report_data":"***"}`, on, "reading report_data"},
		{`{"report_data":"bm9uY2U="}`, on, "no svn"},
		{`{"svn":1}`, on, "reading sample evidence"},
		{`{`, on, "reading sample evidence"},
		{`"` + strings.Repeat("a", 64<<10) + `"`, on, "at most"},
	} {
		if _, err := sample.Verify(context.Background(), json.RawMessage(c.raw), c.o); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%.60s: got %v, expected a refusal with %q", c.raw, err, c.why)
		}
		if _, err := sample.VerifyDevice(context.Background(), json.RawMessage(c.raw), c.o); err == nil {
			t.Errorf("device, %.60s: accepted", c.raw)
		}
	}
}
