package builtin

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/plugin/external"
	"github.com/cloister/cloister/broker/plugin/pkcs11"
	"github.com/cloister/cloister/broker/store"
)

func begin(t *testing.T, text string) (*plugin.Set, error) {
	t.Helper()
	var c Config
	if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	db, err := store.Open(t.TempDir() + "/db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return plugin.NewSet(t.Context(), List(c, Parts{Store: db, Now: time.Now}))
}

func names(s *plugin.Set) string {
	var ready []string
	for _, st := range s.Status() {
		_, ok := s.Lookup(st.Name)
		if ok {
			ready = append(ready, st.Name)
		}
	}
	return fmt.Sprint(len(s.Status()), " ", strings.Join(ready, " "))
}

func TestOnlyWhatIsConfiguredIsThere(t *testing.T) {
	s, err := begin(t, "")
	if err != nil || names(s) != "6 resource" {
		t.Fatalf("%s, %v", names(s), err)
	}
	s, err = begin(t, fmt.Sprintf("[sample]\nitem = \"x\"\n[nebula-ca]\nwork_dir = %q\n[nebula-ca.ca_config]\ncurve = \"P256\"\n",
		t.TempDir()))
	if err != nil || names(s) != "6 resource sample nebula-ca" {
		t.Fatalf("%s, %v", names(s), err)
	}
	if p, ok := s.Lookup("sample"); ok {
		admin, err := p.NeedsAdmin(t.Context(), &plugin.Request{})
		answer, herr := p.Handle(t.Context(), &plugin.Request{})
		if !admin || err != nil || herr != nil || string(answer.Body) != "sample plugin response" {
			t.Errorf("sample: %v %+v, %v, %v", admin, answer, err, herr)
		}
	}
}

func TestWhatCannotStartIsAnError(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, text := range []string{
		"[external]\nbackends = []\n", "[provisioner]\nkey_length = 3\n", "[nebula-ca]\nwork_dir = \"\"\n",
		"[pkcs11]\nmodule = \"m.so\"\n",
		"[pkcs11]\nmodule = \"/m\"\ntoken_label = \"l\"\npin_file = \"/p\"\nhelper = \"/nonexistent\"\n",
		fmt.Sprintf("[external]\nbackends = [ { name = \"a\", endpoint = \"https://%s\", ca_cert_path = \"/nonexistent\" } ]\n", ln.Addr()),
		"[sample]\nitem = \"" + strings.Repeat("x", 4097) + "\"\n",
	} {
		if s, err := begin(t, text); err == nil {
			t.Errorf("%.60s starts: %s", text, names(s))
		}
	}
}

func TestInsecure(t *testing.T) {
	c := Config{PKCS11: &pkcs11.Config{RSAMechanism: "RsaPkcsTest"}, External: &external.Config{Backends: []external.Backend{{Name: "a", InsecureHTTP: true}, {Name: "b"}}}}
	if got := fmt.Sprint(c.Insecure(), Config{}.Insecure()); got != "[pkcs11.rsa_mechanism=RsaPkcsTest a.insecure_http] []" {
		t.Errorf("got %s", got)
	}
}
