package hub

import (
	"strings"
	"testing"
)

const fullAA = `
[token_configs.kbs]
url = "https://kbs.example:8080"
cert = "PEM A"
tee_key_algorithm = "ECDH-ES+A256KW-P521"
[token_configs.coco_as]
url = "http://as"
[eventlog_config]
init_pcr = 23
enable_eventlog = true
[log]
level = "debug"
`

const fullCDH = `
socket = "unix:///run/confidential-containers/cdh.sock"
skip_sealed_secret_verification = true
[aa]
aa_socket = "unix:///run/x.sock"
[kbc]
name = "cc_kbc"
url = "https://kbs.example:8080/"
kbs_cert = "PEM B"
[[credentials]]
path = "/run/confidential-containers/cdh/kbs/a"
resource_uri = "kbs:///a/b/c"
[log]
level = "info"
[image]
work_dir = "/run/kata-containers/image/"
max_concurrent_layer_downloads_per_image = 3
image_security_policy_uri = "kbs:///default/security-policy/test"
extra_root_certificates = []
[image.image_pull_proxy]
https_proxy = "http://proxy"
`

func TestConfig(t *testing.T) {
	c, err := ParseConfig(fullAA, fullCDH)
	if err != nil {
		t.Fatal(err)
	}
	b, ok := c.Broker("doc", nil)
	if !ok || b.URL != "https://kbs.example:8080" || b.KeyAlg != "ECDH-ES+A256KW-P521" || b.RootPEM != "PEM B\nPEM A" || b.InitData != "doc" {
		t.Errorf("broker %+v, %t", b, ok)
	}
	if c.AA.EventLog.InitPCR == nil || *c.AA.EventLog.InitPCR != 23 || !c.AA.EventLog.Enable || !c.CDH.SkipVerification || len(c.CDH.Credentials) != 1 {
		t.Errorf("config %+v", c)
	}
	if c.CDH.Image.SecurityPolicyURI != "kbs:///default/security-policy/test" {
		t.Errorf("image config %+v", c.CDH.Image)
	}
	empty, err := ParseConfig("", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := empty.Broker("", nil); ok || empty.AA.EventLog.InitPCR != nil {
		t.Error("an empty configuration names a broker or a register")
	}
}

func TestConfigRefused(t *testing.T) {
	for _, c := range []struct{ aa, cdh, want string }{
		{aa: "[token_configs.kbs]\nurll = \"x\"", want: "token_configs.kbs.urll (line 2)"},
		{aa: "[token_configs.kbs]", want: "token_configs.kbs.url is missing"},
		{aa: "[token_configs.coco_as]", want: "token_configs.coco_as.url is missing"},
		{aa: "[eventlog_config]\ninit_pcr = \"x\"", want: "line 2"},
		{aa: "[", want: "aa.toml: line 1"},
		{cdh: "[kbc]\nname = \"offline_fs_kbc\"", want: `kbc.name is "offline_fs_kbc"`},
		{cdh: "[kbc]\nname = \"cc_kbc\"", want: "kbc.url is missing"},
		{cdh: "[image]\nsecurity_policy = \"x\"", want: "image.security_policy"},
		{cdh: "socket = \"/run/x\"", want: "expected unix://"},
		{cdh: "socket = \"unix:///run/../x\"", want: "expected unix://"},
		{cdh: "[[credentials]]\npath = \"/run/confidential-containers/cdh/kbs/../x\"\nresource_uri = \"kbs:///a/b/c\"", want: "credentials path"},
		{cdh: "[[credentials]]\npath = \"/etc/passwd\"\nresource_uri = \"kbs:///a/b/c\"", want: "credentials path"},
		{cdh: "[[credentials]]\npath = \"/run/confidential-containers/cdh/kbs/x\"\nresource_uri = \"x\"", want: "credentials"},
		{aa: "[token_configs.kbs]\nurl = \"https://a\"", cdh: "[kbc]\nname = \"cc_kbc\"\nurl = \"https://b\"", want: "expected the same broker"},
		{aa: strings.Repeat("#", 2<<20), want: "expected at most"},
	} {
		_, err := ParseConfig(c.aa, c.cdh)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q %.60q: %v, expected %q", c.aa, c.cdh, err, c.want)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add(fullAA, fullCDH)
	f.Fuzz(func(t *testing.T, a, c string) {
		if cfg, err := ParseConfig(a, c); err == nil {
			cfg.Broker("", nil)
		}
	})
}

func FuzzKeyRequest(f *testing.F) {
	f.Add([]byte(`{"op":"keyunwrap","keyunwrapparams":{"dc":null,"annotation":"e30="}}`))
	f.Add([]byte(`{"op":"keyunwrap","keyunwrapparams":{"annotation":[123,125]}}`))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseKeyRequest(b) })
}
