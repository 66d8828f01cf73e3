package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestExample: the annotated example is valid, is the default, and shows every key.
func TestExample(t *testing.T) {
	c, err := Parse([]byte(Example()))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("the example is not the default:\n%+v\n%+v", c, Default())
	}
	// Tables of clouds and tokens are in docs/howto, each in its own words: the example only names them.
	elsewhere := map[string]bool{
		"resources.aws": true, "resources.azure": true, "resources.gcp": true, "resources.pkcs11": true, "storage_key.key_file": true,
		"storage_key.aws_kms": true, "storage_key.azure_key_vault": true, "storage_key.gcp_kms": true, "storage_key.vault_transit": true,
		"storage_key.previous": true,
	}
	var walk func(typ reflect.Type, path, mark string)
	walk = func(typ reflect.Type, path, mark string) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			key, kind, mark := f.Tag.Get("toml"), f.Type, mark
			if key == "-" {
				continue
			}
			if f.Anonymous {
				walk(f.Type, path, mark)
				continue
			}
			table := "[" + path + key + "]"
			if elsewhere[path+key] {
				continue
			}
			switch kind.Kind() {
			case reflect.Pointer: // off until its table is there
				kind, mark = kind.Elem(), "# "
			case reflect.Slice:
				if mark != "" && kind.Elem().Kind() == reflect.Struct {
					kind, table = kind.Elem(), "["+table+"]"
				}
			}
			if kind.Kind() == reflect.Struct {
				if !strings.Contains(Example(), "\n"+mark+table+"\n") {
					t.Errorf("the example lacks %s%s", mark, table)
				}
				walk(kind, path+key+".", mark)
			} else if !strings.Contains(Example(), "\n"+mark+key+" = ") {
				t.Errorf("the example lacks %s%s", mark, key)
			}
		}
	}
	walk(reflect.TypeOf(c), "", "")
}

func TestFaultsNameTheLine(t *testing.T) {
	for _, tc := range []struct{ text, says string }{
		{"[server]\nlistne = \"x\"\n[tpm]\nroots = []\n", "line 2, column 1: unknown key \"server.listne\""},
		{"[server]\nlistne = \"x\"\n[tpm]\nroots = []\n", "line 4, column 1: unknown key \"tpm.roots\""},
		{"[tpm]\ninsecure_unknown_tpm = \"yes\"\n", "line 2"},
		{"[attestation]\nsession_lifetime = \"soon\"\n", "want for example"},
		{"[attestation\n", "line 1"},
		{"[server]\nlisten = \"8080\"\n", "line 2: server.listen"},
		{"server.listen = \"8080\"\n", "line 1: server.listen"},
		{"\n[\"ser\\u0076er\"]\n\"list\\u0065n\" = \"8080\"\n", "line 3: server.listen"},
		{"# first\n[limits]\nburst = -1\n[admin]\nmode = \"x\"\n", "line 2: limits are"},
		{"# first\n[limits]\nburst = -1\n[admin]\nmode = \"x\"\n", "line 5: admin.mode"},
		{"[plugins.provisioner]\nkey_length = 1\n[resources]\nbackend = \"aws\"\n", "line 3: resources: aws: "},
		{"[attestation]\nmax_sessions = 0\ntoken_lifetime = \"0s\"\n", "attestation.max_sessions is 0"},
		{"[attestation]\nmax_sessions = 0\ntoken_lifetime = \"0s\"\n", "attestation.token_lifetime is 0s"},
		{"[server]\ntls_key = \"x\"\n", "both or neither"},
		{"[server]\nlisten = \"\"\n", "nothing would be served"},
		{"[attestation_api]\nservices = []\n", "attestation_api.services is empty"},
		{"[attestation_api]\nservices = [\"kbs\"]\n", "attestation_api.services has \"kbs\""},
		{"[attestation_api]\nservices = [\"as\", \"as\"]\n", "at most once"},
		{"[attestation_api]\nrest_listen = \":1\"\nservices = [\"rvps\"]\n", "attestation_api.rest_listen is of the service"},
		{"[server]\ntls_hosts = []\n", "server.tls_hosts is empty"},
	} {
		if _, err := Parse([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%q: error %v, want one with %q", tc.text, err, tc.says)
		}
	}
}

func TestLoadResolvesPaths(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "b.toml")
	if err := os.WriteFile(file, []byte("data_dir = \"d\"\n[tpm]\nek_roots = [\"r.pem\", \"/abs.pem\"]\n"+
		"[resources.vault]\nca_certs = [\"v.pem\"]\n[[plugins.external.backends]]\nname = \"x\"\nendpoint = \"https://x:1\"\nca_cert_path = \"x.pem\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.Resources.Vault.CACerts[0] != filepath.Join(dir, "v.pem") {
		t.Errorf("ca_certs of Vault is %v", c.Resources.Vault.CACerts)
	}
	if c.DataDir != filepath.Join(dir, "d") || c.TPM.EKRoots[0] != filepath.Join(dir, "r.pem") || c.TPM.EKRoots[1] != "/abs.pem" {
		t.Errorf("paths are %s and %v", c.DataDir, c.TPM.EKRoots)
	}
	if got := c.Resources.Vault.CACerts[0] + c.Plugins.External.Backends[0].CACertPath; got != filepath.Join(dir, "v.pem")+filepath.Join(dir, "x.pem") {
		t.Errorf("paths of tables are %s", got)
	}
}

// TestRelativePaths: paths of all tables count from the folder of the file, those of lists and of tables that are off by default too.
func TestRelativePaths(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	text := "[resources]\nbackend = \"vault\"\n[resources.vault]\nvault_url = \"https://v\"\ntoken_file = \"t\"\nca_certs = [\"ca.pem\"]\n" +
		"[plugins.nebula-ca]\nwork_dir = \"nebula\"\n[plugins.external]\nbackends = [{ name = \"x\", endpoint = \"https://e:1\", ca_cert_path = \"e.pem\" }]\n" +
		"[reference_values.remote]\naddress = \"https://r:1\"\nca_certs = [\"r.pem\"]\n[trusted_tokens]\njwk_sets = [\"https://j\", \"j.json\"]\n"
	if err := os.WriteFile("b.toml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load("b.toml")
	if err != nil {
		t.Fatal(err)
	}
	got := []string{
		c.Resources.Vault.TokenFile, c.Resources.Vault.CACerts[0], c.Plugins.NebulaCA.WorkDir, c.Plugins.External.Backends[0].CACertPath,
		c.ReferenceValues.Remote.CACerts[0], c.TrustedTokens.JWKSets[1],
	}
	for i, want := range []string{"t", "ca.pem", "nebula", "e.pem", "r.pem", "j.json"} {
		if got[i] != filepath.Join(dir, want) {
			t.Errorf("%s is taken for %s", want, got[i])
		}
	}
	if c.TrustedTokens.JWKSets[0] != "https://j" || c.Server.Listen != "127.0.0.1:8080" {
		t.Errorf("addresses were changed: %+v, %s", c.TrustedTokens, c.Server.Listen)
	}
}

// TestTextsAreKnown: whether a new key is a path is decided, not forgotten.
func TestTextsAreKnown(t *testing.T) {
	paths := keySet(pathKeys)
	others := keySet(`listen tls_hosts tls_profile trusted_proxies backend host name user grpc_listen rest_listen services
		extra_teekey_paths mode issuer issuers audience paths methods role address nras_url jwks_url kds_url pcs_url pccs_url base_url policy_ids
		intel_root_crl_url tcb_update nvidia_rim_url nvidia_ocsp_url predicates endpoint provider identity keep
		token_label token_serial environment key_label rsa_mechanism lookup_label curve duration groups ips subnets item layout
		region credentials profile role_arn session_name sts_endpoint container_url metadata_url iam_endpoint service_account
		vault_url tenant_id client_id authority project_id location mapping name_prefix repository type mount_path namespace key_arn key`)
	var walk func(typ reflect.Type, key string)
	walk = func(typ reflect.Type, key string) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice:
			walk(typ.Elem(), key)
		case reflect.Struct:
			for i := range typ.NumField() {
				if f := typ.Field(i); f.Tag.Get("toml") != "-" && f.IsExported() {
					walk(f.Type, f.Tag.Get("toml"))
				}
			}
		case reflect.String:
			if paths[key] == others[key] {
				t.Errorf("key %q: want it among paths or, here, among what is none", key)
			}
		}
	}
	walk(reflect.TypeOf(Config{}), "")
}

func TestDatabase(t *testing.T) {
	for _, tc := range []struct{ text, says string }{
		{"[database]\nbackend = \"mysql\"\n", "want \"embedded\" or \"postgresql\""},
		{"[database]\nhost = \"db\"\n", "no effect"},
		{"[database]\nbackend = \"postgresql\"\n", "database: "},
		{"[database]\nconnect_timeout = \"1ms\"\n", "want 1s to 5m"},
		{"[resources]\nbackend = \"vault\"\n", "resources: vault: "},
		{"[plugins.provisioner]\nkey_length = 1\n", "plugins: provisioner: key_length is 1"},
	} {
		if _, err := Parse([]byte(tc.text)); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%q: error %v, want one with %q", tc.text, err, tc.says)
		}
	}
}

func TestInsecureIsListed(t *testing.T) {
	c := Default()
	if n := len(c.Insecure()); n != 0 {
		t.Errorf("the default has %d insecure switches on", n)
	}
	c.Server.InsecureHTTP, c.TPM.InsecureUnknownTPM = true, true
	if n := len(c.Insecure()); n != 2 {
		t.Errorf("%d insecure switches are listed, want 2", n)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(Example()))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = Parse(raw)
	})
}
