package fragment

import (
	"encoding/pem"
	"strings"
	"testing"

	"github.com/cloister/cloister/wire/didx509/didtest"
	"github.com/cloister/cloister/wire/fragment"
)

const policy = `package agent_policy

import rego.v1

default CreateContainerRequest := false

policy_data := {"containers": [{"kind": "pause", "OCI": {}}, {"kind": "container", "name": "web", "OCI": {"Process": {"Args": ["/web", "<&>"]}}}]}
`

func TestModuleAndSign(t *testing.T) {
	containers, err := Containers(policy)
	if err != nil || len(containers) != 1 {
		t.Fatalf("%v, %v", containers, err)
	}
	key, ca := didtest.NewKey(t), didtest.NewAuthority(t)
	chain := ca.Issue(t, didtest.Leaf(), key.Public())
	issuer, err := Issuer(chain)
	if err != nil || !strings.HasSuffix(issuer, "::eku:"+didtest.EKU.String()) {
		t.Fatalf("%s, %v", issuer, err)
	}
	module, err := Module("registry.example/web", issuer, 4, containers)
	if err != nil {
		t.Fatal(err)
	}
	want := `package agent_policy.fragments["registry.example/web"]

svn := 4

issuer := "` + issuer + `"

containers := [
  {
    "OCI": {
      "Process": {
        "Args": [
          "/web",
          "<&>"
        ]
      }
    },
    "kind": "container",
    "name": "web"
  }
]
`
	if module != want {
		t.Errorf("module:\n%s", module)
	}
	o := SignOptions{Chain: chain, Key: key, Feed: "registry.example/web", SVN: 4}
	raw, err := Sign(module, o)
	if err != nil {
		t.Fatal(err)
	}
	m, err := fragment.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(didtest.At); err != nil || m.Issuer != issuer || string(m.Payload) != module {
		t.Errorf("%+v, %v", m, err)
	}
	for name, tc := range map[string]struct {
		module string
		change func(o *SignOptions)
		fault  string
	}{
		"another feed":    {module, func(o *SignOptions) { o.Feed = "registry.example/other" }, "its package is"},
		"another version": {module, func(o *SignOptions) { o.SVN = 5 }, "its svn is 4"},
		"no feed":         {module, func(o *SignOptions) { o.Feed = "" }, "feed"},
		"no Rego":         {"{", func(*SignOptions) {}, "reading the fragment"},
		"nothing":         {"", func(*SignOptions) {}, "reading the fragment"},
		"another issuer":  {module, func(o *SignOptions) { o.Issuer = issuer + "1" }, "predicate eku"},
		"another key":     {module, func(o *SignOptions) { o.Key = didtest.NewKey(t) }, "not that of the first"},
		"half a chain":    {module, func(o *SignOptions) { o.Chain = o.Chain[:1] }, "want the signer's and"},
	} {
		o := o
		tc.change(&o)
		if _, err := Sign(tc.module, o); err == nil || !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%s: %v, want %q", name, err, tc.fault)
		}
	}
	// A fragment of Azure's has a package of its own.
	if _, err := Sign("package shop\n\nsvn := \"4\"\n\ncontainers := []\n", o); err != nil {
		t.Error(err)
	}
}

func TestIssuerBySubject(t *testing.T) {
	key, ca := didtest.NewKey(t), didtest.NewAuthority(t)
	leaf := didtest.Leaf()
	leaf.UnknownExtKeyUsage = nil
	issuer, err := Issuer(ca.Issue(t, leaf, key.Public()))
	if err != nil || !strings.Contains(issuer, "::subject:C:DE:ST:BE:O:Example%2C%20Inc.:CN:Signer%20%28test%29") {
		t.Errorf("%s, %v", issuer, err)
	}
}

func TestReadPEM(t *testing.T) {
	key, ca := didtest.NewKey(t), didtest.NewAuthority(t)
	var text []byte
	for _, c := range ca.Issue(t, didtest.Leaf(), key.Public()) {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	if chain, err := ReadChain(text); err != nil || len(chain) != 3 {
		t.Errorf("%v, %v", chain, err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: text[:10]}), make([]byte, maxPEMBytes+1)} {
		if _, err := ReadChain(bad); err == nil {
			t.Error("a bad chain is read")
		}
	}
}

func TestContainersRefuses(t *testing.T) {
	for _, bad := range []string{"", "{", "package x", "package agent_policy\npolicy_data := {\"containers\": []}", "package agent_policy\npolicy_data := {\"containers\": [{\"kind\": \"pause\"}]}"} {
		if c, err := Containers(bad); err == nil {
			t.Errorf("%q has containers %v", bad, c)
		}
	}
}
