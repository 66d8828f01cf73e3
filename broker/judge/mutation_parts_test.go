package judge_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/judge"
	"github.com/cloister/cloister/tee/eventlog"
)

// TestLogMutations changes every digest that a verdict rests on, drops and repeats events.
func TestLogMutations(t *testing.T) {
	for _, c := range load(t) {
		if c.Platform != "eventlog" {
			continue
		}
		t.Run(c.ID, func(t *testing.T) {
			whole, err := eventlog.Parse(c.in.Evidence)
			if err != nil {
				t.Fatal(err)
			}
			for i := range whole.Events {
				data := slices.Clone(c.in.Evidence)
				log, err := eventlog.Parse(data) // its slices point into data
				if err != nil {
					t.Fatal(err)
				}
				e := &log.Events[i]
				if e.Type == eventlog.NoAction {
					continue
				}
				for _, d := range e.Digests {
					if _, counts := c.in.Replay[d.Alg.String()]; counts || c.in.TDQuote != nil && d.Alg == eventlog.SHA384 {
						d.Sum[len(d.Sum)-1] ^= 1
						mustRefuse(t, c, "evidence", data, "digest of event", i)
						d.Sum[len(d.Sum)-1] ^= 1
					}
				}
			}
		})
	}
}

// TestContent changes what a log says of an event whose digest is that of its content: the registers stay as they are.
func TestContent(t *testing.T) {
	changed := map[string]int{}
	for _, c := range load(t) {
		if c.Platform != "eventlog" {
			continue
		}
		data := slices.Clone(c.in.Evidence)
		log, err := eventlog.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		for i := range log.Events {
			e := &log.Events[i]
			name := e.Type.String()
			exact := slices.Contains([]string{"EV_SEPARATOR", "EV_EFI_ACTION", "EV_EFI_VARIABLE_DRIVER_CONFIG", "EV_EFI_GPT_EVENT"}, name)
			grub := name == "EV_IPL" && bytes.HasPrefix(e.Data, []byte("grub_cmd: "))
			if !exact && !grub || len(e.Data) == 0 {
				continue
			}
			at := max(len(e.Data)/2, min(len("grub_cmd: "), len(e.Data)-2))
			e.Data[at] ^= 1
			if v := judge.Judge(t.Context(), with(c, "evidence", data)); v.Word != judge.ContentCheck || v.Outcome != judge.Refused {
				t.Errorf("%s: event %d (%s) says something else: verdict %s %q", c.ID, i, name, v.Word, v.Reasons)
			}
			e.Data[at] ^= 1
			changed[name]++
		}
	}
	if len(changed) < 5 {
		t.Errorf("events of the types %v were changed, expected five types", changed)
	}
}

// TestRegisterMutations changes the first value that a quote is over.
func TestRegisterMutations(t *testing.T) {
	for _, c := range load(t) {
		if len(c.in.PCRs) == 0 {
			continue
		}
		data := slices.Clone(c.in.PCRs)
		at := bytes.IndexByte(data, ':') + 3 // JSON: a digit of the first value
		if data[0] != '{' {
			at = 4 + 16*8 + 4 + 4 + 2
		} else if data[at] = '0'; c.in.PCRs[at] == '0' {
			data[at] = '1'
		}
		if data[0] != '{' {
			data[at] ^= 1
		}
		mustRefuse(t, c, "registers", data, "byte", at)
	}
}

// TestJSONMutations changes the binary members of evidence in JSON, in their encoding, where something signs them.
func TestJSONMutations(t *testing.T) {
	signed := map[string][]string{
		"az-snp-vtpm": {"signature", "message", "pcrs"}, "az-tdx-vtpm": {"signature", "message", "pcrs"},
		"tpm-coco": {"signature", "message", "pcrs"},
		"se":       {"measurement", "additional_data", "user_data", "cuid", "encr_measurement_key", "encr_request_nonce", "image_hdr_tags"},
	}
	for _, c := range load(t) {
		names := signed[c.Platform]
		if names == nil {
			continue
		}
		var doc any
		if err := json.Unmarshal(c.in.Evidence, &doc); err != nil {
			t.Fatal(err)
		}
		changed := 0
		for _, name := range names {
			visit(doc, name, func(v any) any {
				changed++
				return flip(v)
			}, func() {
				data, err := json.Marshal(doc)
				if err != nil {
					t.Fatal(err)
				}
				mustRefuse(t, c, "evidence", data, name, changed)
			})
		}
		if changed < len(names) {
			t.Errorf("%s: %d members changed, expected those of %v", c.ID, changed, names)
		}
	}
}

// visit changes every member of a name, one at a time, and calls check in between.
func visit(doc any, name string, change func(any) any, check func()) {
	m, ok := doc.(map[string]any)
	if !ok {
		return
	}
	for k, v := range m {
		if k == name {
			m[k] = change(v)
			check()
			m[k] = v
			continue
		}
		visit(v, name, change, check)
	}
}

// flip changes one bit of the first value: text of hex or base64, a list of numbers, or a list of these.
func flip(v any) any {
	switch x := v.(type) {
	case string:
		if b, err := hex.DecodeString(x); err == nil && len(b) > 0 {
			b[0] ^= 1
			return hex.EncodeToString(b)
		}
		e := base64.StdEncoding
		b, err := e.DecodeString(x)
		if err != nil {
			return strings.Repeat("A", len(x))
		}
		b[0] ^= 1
		return e.EncodeToString(b)
	case []any:
		out := slices.Clone(x)
		if n, ok := out[0].(float64); ok {
			out[0] = float64(int(n) ^ 1)
			return out
		}
		out[0] = flip(out[0])
		return out
	}
	return fmt.Sprint(v, "x")
}
