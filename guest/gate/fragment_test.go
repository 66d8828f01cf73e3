package gate

import (
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/didx509"
	"github.com/cloister/cloister/wire/didx509/didtest"
	"github.com/cloister/cloister/wire/fragment"
)

const feed = "registry.example/shop/web"

type publisher struct {
	header fragment.Header
	key    crypto.Signer
}

func newPublisher(t testing.TB) publisher {
	t.Helper()
	key, ca := didtest.NewKey(t), didtest.NewAuthority(t)
	return publisher{key: key, header: fragment.Header{
		Issuer: "did:x509:0:sha256:" + didx509.Fingerprint(ca.Root) + "::eku:" + didtest.EKU.String(),
		Feed:   feed, SVN: 2, Chain: ca.Issue(t, didtest.Leaf(), key.Public()),
	}}
}

func (p publisher) sign(t testing.TB, svn uint64, module string) []byte {
	t.Helper()
	p.header.SVN = svn
	raw, err := fragment.Sign(p.header, []byte(module), p.key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func containersModule(svn uint64, commands ...string) string {
	var list []string
	for _, c := range commands {
		list = append(list, fmt.Sprintf(`{"OCI": {"Process": {"Args": [%q]}}}`, c))
	}
	return fmt.Sprintf("package agent_policy.fragments[%q]\n\nsvn := %d\n\ncontainers := [%s]\n", feed, svn, strings.Join(list, ", "))
}

// policy is a policy with one container, /base, and with declarations of fragments.
func (p publisher) policy(t testing.TB, declarations ...map[string]any) *Engine {
	t.Helper()
	rules, err := os.ReadFile("testdata/fragments.rego")
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]any{
		"containers": []any{map[string]any{"OCI": map[string]any{"Process": map[string]any{"Args": []string{"/base"}}}}}, "fragments": declarations,
	})
	if err != nil {
		t.Fatal(err)
	}
	return engine(t, string(rules)+"policy_data := "+string(data)+"\n")
}

func (p publisher) declare(minimum int) map[string]any {
	return map[string]any{"issuer": p.header.Issuer, "feed": feed, "minimum_svn": minimum}
}

func create(e *Engine, id, command string) error {
	return ask(e, &agent.CreateContainerRequest{ContainerId: id, OCI: &agent.Spec{Process: &agent.Process{Args: []string{command}}}})
}

func TestFragment(t *testing.T) {
	p := newPublisher(t)
	e := p.policy(t, p.declare(2))
	if err := create(e, "a", "/base"); err != nil {
		t.Fatal(err)
	}
	if err := create(e, "b", "/web"); err == nil {
		t.Fatal("a container of a fragment is admitted before it is loaded")
	}
	raw := p.sign(t, 2, containersModule(2, "/web", "/other"))
	for range 2 { // a second time is no fault
		if err := e.LoadFragment(t.Context(), raw, didtest.At); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(create(e, "b", "/web"), ask(e, &agent.StartContainerRequest{ContainerId: "a"}), ask(e, &agent.StartContainerRequest{ContainerId: "b"})); err != nil {
		t.Errorf("state or containers are lost: %v", err)
	}
	if err := create(e, "a", "/base"); err == nil {
		t.Error("the state forgot a container")
	}
	// A newer version joins, an older or another of the same version does not.
	for svn, want := range map[uint64]bool{1: false, 2: false} {
		if err := e.LoadFragment(t.Context(), p.sign(t, svn, containersModule(svn, "/evil")), didtest.At); (err == nil) != want {
			t.Errorf("version %d: %v", svn, err)
		}
	}
	if err := e.LoadFragment(t.Context(), p.sign(t, 5, containersModule(5, "/new")), didtest.At); err != nil {
		t.Fatal(err)
	}
	if err := create(e, "c", "/new"); err != nil {
		t.Error(err)
	}
	if err := create(e, "d", "/evil"); err == nil {
		t.Error("a refused fragment counts")
	}
}

func TestFragmentRefused(t *testing.T) {
	p, other := newPublisher(t), newPublisher(t)
	good := containersModule(2, "/web")
	foreign := other.sign(t, 2, good)
	misfed := p
	misfed.header.Feed = "registry.example/other"
	tampered := []byte(strings.Replace(string(p.sign(t, 2, good)), `["/web"]`, `["/wob"]`, 1))
	for name, tc := range map[string]struct {
		raw   []byte
		at    time.Time
		fault string
	}{
		"another issuer":   {foreign, didtest.At, "blocked by policy"},
		"another feed":     {misfed.sign(t, 2, strings.Replace(good, feed, misfed.header.Feed, 1)), didtest.At, "blocked by policy"},
		"too old":          {p.sign(t, 1, containersModule(1, "/web")), didtest.At, "blocked by policy"},
		"expired":          {p.sign(t, 2, good), didtest.Begin.AddDate(2, 0, 0), "blocked by policy"},
		"tampered":         {tampered, didtest.At, "the signature is wrong"},
		"oversized":        {make([]byte, fragment.MaxBytes+1), didtest.At, "the limit is"},
		"nothing":          {nil, didtest.At, "COSE_Sign1"},
		"another package":  {p.sign(t, 2, strings.Replace(good, feed, "x", 1)), didtest.At, "its package is"},
		"the policy's own": {p.sign(t, 2, strings.Replace(good, `agent_policy.fragments["`+feed+`"]`, "agent_policy", 1)), didtest.At, "its package is"},
		"another version":  {p.sign(t, 2, containersModule(3, "/web")), didtest.At, "not the version of the header"},
		"another claim":    {p.sign(t, 2, good+"issuer := \"me\"\n"), didtest.At, "not that of the header"},
		"a rule":           {p.sign(t, 2, good+"CreateContainerRequest if true\nx if input.y\n"), didtest.At, "a fragment has no"},
		"a call":           {p.sign(t, 2, strings.Replace(good, `["/web"]`, `split("/web", ",")`, 1)), didtest.At, "no constant"},
		"a comprehension":  {p.sign(t, 2, strings.Replace(good, `["/web"]`, `[x | some x in input]`, 1)), didtest.At, ""},
		"twice":            {p.sign(t, 2, good+"svn := 2\n"), didtest.At, "no constant"},
		"an import":        {p.sign(t, 2, strings.Replace(good, "svn", "import data.agent_policy.policy_data\nsvn", 1)+"default x := 1\n"), didtest.At, "no constant"},
		"no containers":    {p.sign(t, 2, "package agent_policy.fragments[\""+feed+"\"]\nsvn := 2\n"), didtest.At, "does not define"},
		"other things":     {p.sign(t, 2, good+"extra := 1\n"), didtest.At, "no such constant"},
		"no object":        {p.sign(t, 2, "package agent_policy.fragments[\""+feed+"\"]\nsvn := 2\ncontainers := [1]\n"), didtest.At, "no object"},
		"no module":        {p.sign(t, 2, "{"), didtest.At, "parsing"},
		"a long line":      {p.sign(t, 2, good+"# "+strings.Repeat("x", maxLineBytes)), didtest.At, "the limit is"},
	} {
		e := p.policy(t, p.declare(2))
		err := e.LoadFragment(t.Context(), tc.raw, tc.at)
		if err == nil || !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%s: %v, want %q", name, err, tc.fault)
		}
		if create(e, "x", "/web") == nil || create(e, "x", "/base") != nil {
			t.Errorf("%s: the policy is not what it was", name)
		}
	}
	if err := p.policy(t).LoadFragment(t.Context(), p.sign(t, 2, good), didtest.At); err == nil {
		t.Error("a policy without declarations takes a fragment")
	}
	if err := engine(t, head+"CreateContainerRequest := true").LoadFragment(t.Context(), p.sign(t, 2, good), didtest.At); err == nil {
		t.Error("a policy without the rule takes a fragment")
	}
}

// TestFragmentDeclarations has what a policy can say of fragments.
func TestFragmentDeclarations(t *testing.T) {
	p := newPublisher(t)
	raw := p.sign(t, 2, containersModule(2, "/web"))
	late := didtest.Begin.AddDate(2, 0, 0)
	expired := p.declare(1)
	expired["allow_expired"] = true
	if err := p.policy(t, expired).LoadFragment(t.Context(), raw, late); err != nil {
		t.Error(err)
	}
	if err := p.policy(t, expired, p.declare(1)).LoadFragment(t.Context(), raw, late); err == nil {
		t.Error("one declaration that takes expired fragments speaks for another")
	}
	if err := p.policy(t, p.declare(1), p.declare(3)).LoadFragment(t.Context(), raw, didtest.At); err == nil {
		t.Error("the lower of two floors holds")
	}
	required := p.declare(1)
	required["required"] = true
	e := p.policy(t, required)
	if err := create(e, "a", "/base"); err == nil {
		t.Error("a container is admitted before a required fragment")
	}
	if err := errors.Join(e.LoadFragment(t.Context(), raw, didtest.At), create(e, "a", "/base")); err != nil {
		t.Error(err)
	}
}

// TestFragmentBetween: a load between a decision and its failure does not keep the decision from being taken back.
func TestFragmentBetween(t *testing.T) {
	p := newPublisher(t)
	e := p.policy(t, p.declare(2))
	req := &agent.CreateContainerRequest{ContainerId: "a", OCI: &agent.Spec{Process: &agent.Process{Args: []string{"/base"}}}}
	undo, err := e.Begin(t.Context(), "CreateContainerRequest", req)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.LoadFragment(t.Context(), p.sign(t, 2, containersModule(2, "/web")), didtest.At); err != nil {
		t.Fatal(err)
	}
	if err := undo(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := create(e, "a", "/base"); err != nil {
		t.Error(err)
	}
}

func TestFragmentLimit(t *testing.T) {
	p := newPublisher(t)
	e := p.policy(t, p.declare(1))
	for svn := range uint64(maxFragments) {
		if err := e.LoadFragment(t.Context(), p.sign(t, svn+1, containersModule(svn+1, "/web")), didtest.At); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.LoadFragment(t.Context(), p.sign(t, 1000, containersModule(1000, "/web")), didtest.At); err == nil || !strings.Contains(err.Error(), "the limit") {
		t.Error(err)
	}
}

func FuzzReadFragment(f *testing.F) {
	f.Add(containersModule(2, "/web"))
	f.Add("package agent_policy.fragments[\"" + feed + "\"]\nimport rego.v1\nsvn := 2\ncontainers := [{\"a\": [1, null, {}]}]\nissuer := \"i\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := readFragment(&fragment.Message{Issuer: "i", Feed: feed, SVN: 2, HasSVN: true, Payload: []byte(text)})
		if err != nil {
			return
		}
		if len(l.Containers) == 0 || l.SVN != 2 {
			t.Errorf("read %+v", l)
		}
		if _, err := json.Marshal(l); err != nil {
			t.Error(err)
		}
	})
}
