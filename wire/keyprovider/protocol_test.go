package keyprovider

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

const plbco = `{"symkey":"AA=="}`

func TestParseInput(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString
	for name, text := range map[string]string{
		"Go encryptor":   `{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":["a2V5aWQ9eA=="]},"DecryptConfig":{"Parameters":{}}},"optsdata":"` + b64([]byte(plbco)) + `"},"keyunwrapparams":{"dc":null,"annotation":null}}`,
		"Rust as text":   `{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":["a2V5aWQ9eA=="]}},"optsdata":"{\"symkey\":\"AA==\"}"}}`,
		"Rust as object": `{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":["a2V5aWQ9eA=="]}},"optsdata":` + plbco + `}}`,
	} {
		in, err := ParseInput([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if in.Op != OpWrap || string(in.Wrap.OptsData) != plbco || string(in.Wrap.EC.Parameters["attestation-agent"][0]) != "keyid=x" {
			t.Errorf("%s: %+v", name, in)
		}
	}
	for name, annotation := range map[string]string{"base64": `"` + b64([]byte("{}")) + `"`, "numbers": `[123,125]`} {
		in, err := ParseInput([]byte(`{"op":"keyunwrap","keywrapparams":{"ec":null,"optsdata":null},"keyunwrapparams":{"dc":{"Parameters":{"attestation-agent":["YQ=="]}},"annotation":` + annotation + `}}`))
		if err != nil || string(in.Unwrap.Annotation) != "{}" {
			t.Errorf("%s: %+v, %v", name, in, err)
		}
	}
	for name, bad := range map[string]string{
		"empty": "", "no op": "{}", "op": `{"op":"x"}`, "no data": `{"op":"keywrap"}`, "no annotation": `{"op":"keyunwrap"}`,
		"numbers": `{"op":"keyunwrap","keyunwrapparams":{"annotation":[256]}}`, "negative": `{"op":"keyunwrap","keyunwrapparams":{"annotation":[-1]}}`,
		"base64": `{"op":"keyunwrap","keyunwrapparams":{"annotation":"%"}}`, "large": strings.Repeat(" ", maxMessage+1),
	} {
		if in, err := ParseInput([]byte(bad)); err == nil {
			t.Errorf("%s: accepted as %+v", name, in)
		}
	}
	if _, err := ParseInput([]byte(`{"op":"keywrap","keywrapparams":{"optsdata":"geheim?"}}`)); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("got %v", err)
	}
}

func TestOutput(t *testing.T) {
	text, err := json.Marshal(Output{Unwrap: &UnwrapResults{OptsData: Bytes{1, 255}}})
	if err != nil || string(text) != `{"keyunwrapresults":{"optsdata":[1,255]}}` {
		t.Errorf("got %s, %v", text, err)
	}
	for _, text := range []string{`{"keywrapresults":{"annotation":[1,255]}}`, `{"keywrapresults":{"annotation":"Af8="}}`} {
		out, err := ParseOutput([]byte(text))
		if err != nil || !bytes.Equal(out.Wrap.Annotation, []byte{1, 255}) {
			t.Errorf("%s: %+v, %v", text, out, err)
		}
	}
	for _, bad := range []string{"", `{"keywrapresults":{"annotation":{}}}`, strings.Repeat(" ", maxMessage+1)} {
		if _, err := ParseOutput([]byte(bad)); err == nil {
			t.Errorf("%.40s: accepted", bad)
		}
	}
}

func TestInputRoundTrip(t *testing.T) {
	text, err := json.Marshal(Input{Op: OpWrap, Wrap: WrapParams{OptsData: OptsData(plbco)}})
	if err != nil {
		t.Fatal(err)
	}
	in, err := ParseInput(text)
	if err != nil || string(in.Wrap.OptsData) != plbco {
		t.Errorf("%s: %+v, %v", text, in, err)
	}
}

func FuzzParseInput(f *testing.F) {
	f.Add([]byte(`{"op":"keywrap","keywrapparams":{"optsdata":{"symkey":"AA=="}}}`))
	f.Add([]byte(`{"op":"keyunwrap","keyunwrapparams":{"annotation":[1,2]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		in, err := ParseInput(text)
		if err != nil {
			return
		}
		again, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseInput(again)
		if err != nil || !bytes.Equal(back.Wrap.OptsData, in.Wrap.OptsData) || !bytes.Equal(back.Unwrap.Annotation, in.Unwrap.Annotation) {
			t.Fatalf("%q became %q: %v", text, again, err)
		}
	})
}
