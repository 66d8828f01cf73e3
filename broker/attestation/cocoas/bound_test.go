package cocoas

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/broker/attestation"
)

var wanted = bytes.Repeat([]byte{7}, 48)

func item() attestation.Item {
	return attestation.Item{TEE: "snp", ReportData: wanted, Runtime: map[string]any{"nonce": "n",
		"tee-pubkey": map[string]any{"kty": "EC"}, "additional-evidence": ""}}
}

// claims is a token about item, with some text replaced.
func claims(t testing.TB, old, replacement string) map[string]any {
	t.Helper()
	text := `{"jti":"00ff","submods":{"cpu0":{"ear.status":"warning","ear.trustworthiness-vector":{"executables":33,"hardware":2},` +
		`"ear.appraisal-policy-id":"default","ear.veraison.annotated-evidence":{"snp":{"measurement":"aa"},"report_data":"` +
		hex.EncodeToString(wanted) + strings.Repeat("00", 16) + `","runtime_data_claims":{"tee-pubkey":{"kty":"EC"},"nonce":"n"}}}}}`
	if !strings.Contains(text, old) {
		t.Fatalf("%q is not in the token", old)
	}
	dec := json.NewDecoder(strings.NewReader(strings.Replace(text, old, replacement, 1)))
	dec.UseNumber()
	var out map[string]any
	if err := dec.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBound(t *testing.T) {
	report := hex.EncodeToString(wanted)
	for _, tc := range []struct{ name, old, replacement, says string }{
		{"as it is", "", "", ""},
		{"all of the runtime data", `"nonce":"n"`, `"nonce":"n","additional-evidence":""`, ""},
		{"report data cut", report + strings.Repeat("00", 16), report[:64], ""},
		{"report data in base64", report + strings.Repeat("00", 16), base64.StdEncoding.EncodeToString(wanted), ""},
		{"another nonce", `"nonce":"n"`, `"nonce":"m"`, "another request"},
		{"no nonce", `,"nonce":"n"`, ``, "another request"},
		{"another key", `"kty":"EC"`, `"kty":"RSA"`, "another request"},
		{"other devices", `"nonce":"n"`, `"nonce":"n","additional-evidence":"x"`, "another request"},
		{"more runtime data", `"nonce":"n"`, `"nonce":"n","x":1`, "was not sent"},
		{"no runtime data", `"runtime_data_claims":{"tee-pubkey":{"kty":"EC"},"nonce":"n"}`, `"runtime_data_claims":null`, "want the object"},
		{"runtime data as text", `"runtime_data_claims":{"tee-pubkey":{"kty":"EC"},"nonce":"n"}`, `"runtime_data_claims":"n"`, "want the object"},
		{"other report data", report[:64], strings.Repeat("08", 32), "want that of this request"},
		{"short report data", report + strings.Repeat("00", 16), report[:62], "want that of this request"},
		{"report data with a tail", strings.Repeat("00", 16), strings.Repeat("01", 16), "want that of this request"},
		{"no report data", `"report_data":`, `"init_data":`, "report_data is"},
		{"another TEE", `"snp":{`, `"tdx":{`, `"tdx", want snp`},
		{"two TEEs", `"snp":{`, `"tdx":{},"snp":{`, "want one"},
		{"no machine", `"cpu0"`, `"cpu1"`, "no submod cpu0"},
		{"no submods", `"submods"`, `"x"`, "submods is"},
		{"bad name", `"cpu0"`, `"CPU"`, "want an object"},
		{"status", `"warning"`, `"fine"`, "ear.status"},
		{"vector out of range", `33`, `128`, "-128 to 127"},
		{"vector fraction", `33`, `3.5`, "-128 to 127"},
		{"vector text", `33`, `"33"`, "want a number"},
		{"vector name", `"executables"`, `"a b"`, "want a number"},
		{"no evidence", `"ear.veraison.annotated-evidence"`, `"x"`, "has no ear.veraison"},
		{"one device more", `"submods":{`, `"submods":{"gpu0":{"ear.status":"none","ear.veraison.annotated-evidence":{"nvidia":{}}},`,
			"which was not sent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mods, err := submods(claims(t, tc.old, tc.replacement))
			if err == nil {
				err = bound(mods, []attestation.Item{item()})
			}
			switch {
			case tc.says == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
				t.Errorf("got %v, want %q", err, tc.says)
			}
		})
	}
}

// TestBoundDevices: a device's claims may lack runtime data, but no evidence may be left out.
func TestBoundDevices(t *testing.T) {
	device := item()
	device.TEE = "nvidia"
	c := claims(t, `"submods":{`, `"submods":{"gpu0":{"ear.status":"none","ear.veraison.annotated-evidence":{"nvidia":{}}},`)
	mods, err := submods(c)
	if err != nil {
		t.Fatal(err)
	}
	if mods[0].name != "cpu0" {
		t.Errorf("the first part is %s", mods[0].name)
	}
	if err := bound(mods, []attestation.Item{item(), device}); err != nil {
		t.Errorf("a device without runtime data: %v", err)
	}
	if err := bound(mods[:1], []attestation.Item{item(), device}); err == nil ||
		!strings.Contains(err.Error(), "0 submods about evidence of nvidia") {
		t.Errorf("a device left out: %v", err)
	}
}

func TestConfig(t *testing.T) {
	var c Config
	dec := toml.NewDecoder(strings.NewReader(`
		address = "https://as.example:50004"
		ca_certs = ["ca.pem"]
		client_certificate = "c.pem"
		client_key = "k.pem"
		admin_token_file = "t"
		pool_size = 4
		timeout_ms = 1000
		jwk_sets = ["https://as.example:8443"]
		token_certificates = ["as.pem"]
		issuer = "x"
	`)).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil || c.PoolSize != 4 || c.issuer() != "x" || len(c.Insecure()) != 0 {
		t.Errorf("%+v: %v", c, err)
	}
	for says, change := range map[string]func(*Config){
		"lets the network": func(c *Config) {
			c.Address, c.CACerts, c.ClientCertificate, c.ClientKey = "http://as.example:1", nil, "", ""
		},
		"want https://HOST":   func(c *Config) { c.Address = "as.example:1" },
		"with certificates":   func(c *Config) { c.Address = "http://127.0.0.1:1" },
		"both or neither":     func(c *Config) { c.ClientKey = "" },
		"pool_size is 101":    func(c *Config) { c.PoolSize = 101 },
		"timeout_ms is 46000": func(c *Config) { c.TimeoutMS = 46000 },
		"want at least one":   func(c *Config) { c.JWKSets, c.TokenCertificates = nil, nil },
		"is http://":          func(c *Config) { c.JWKSets = []string{"http://as.example"} },
	} {
		bad := c
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	c.InsecureHTTP, c.InsecureHeaderJWK = true, true
	if got := strings.Join(c.Insecure(), " "); got != "insecure_http insecure_header_jwk" {
		t.Errorf("insecure: %q", got)
	}
}

// FuzzSubmods: whatever a token says, it is read or refused, and what is read can be recorded.
func FuzzSubmods(f *testing.F) {
	raw, err := json.Marshal(claims(f, "", ""))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, text []byte) {
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.UseNumber()
		var c map[string]any
		if dec.Decode(&c) != nil {
			return
		}
		mods, err := submods(c)
		if err != nil {
			return
		}
		if bound(mods, []attestation.Item{item()}) == nil && mods[0].annotated[claimRuntime].(map[string]any)["nonce"] != "n" {
			t.Fatal("a token with another nonce is bound")
		}
		for _, m := range mods {
			for _, finding := range m.findings("p", "a", "00") {
				if _, err := json.Marshal(finding); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
