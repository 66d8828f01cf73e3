package policydir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/broker/appraise"
	"github.com/cloister/cloister/broker/rego"
	"github.com/cloister/cloister/broker/resource"
)

const (
	yes  = "package policy\n\nallow := true\n"
	no   = "package policy\n\nallow := false\n"
	junk = "package policy\n\nallow := \n"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *Directory {
	t.Helper()
	d, err := Open(t.Context(), dir, resource.PolicyID)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// allows asks a policy for its rule allow.
func allows(t *testing.T, s *Set, id string) any {
	t.Helper()
	p, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Begin(rego.Document{})
	if err != nil {
		t.Fatal(err)
	}
	v, _, err := e.Eval(t.Context(), "allow")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestReloadAsOne(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "resource.rego", no)
	write(t, dir, "attestation/mine_cpu.rego", yes)
	write(t, dir, "attestation/README.md", "not a policy")
	d := open(t, dir)
	res, att := d.Resource(), d.Attestation()
	if allows(t, res, resource.PolicyID) != false || allows(t, att, "mine_cpu") != true {
		t.Error("the policies are not those of the folder")
	}
	write(t, dir, "resource.rego", yes)
	write(t, dir, "attestation/mine_cpu.rego", junk)
	write(t, dir, "attestation/other.rego", junk)
	err := d.Item().Load(t.Context())
	if !errors.Is(err, rego.ErrPolicy) || !strings.Contains(err.Error(), "mine_cpu") || !strings.Contains(err.Error(), "other") {
		t.Errorf("the error is %v, want one that names both faults", err)
	}
	if allows(t, res, resource.PolicyID) != false || allows(t, att, "mine_cpu") != true {
		t.Error("half of a faulty set is in force")
	}
	write(t, dir, "attestation/mine_cpu.rego", no)
	if err := os.Remove(filepath.Join(dir, "attestation/other.rego")); err != nil {
		t.Fatal(err)
	}
	if err := d.Item().Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if allows(t, res, resource.PolicyID) != true || allows(t, att, "mine_cpu") != false {
		t.Error("the repaired set is not in force")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := d.Item().Load(t.Context()); err == nil || allows(t, res, resource.PolicyID) != true {
		t.Errorf("the folder has gone, and with it the policies: %v", err)
	}
}

// TestGone: a folder that is empty all of a sudden, as a volume that is not mounted, does not bring the defaults back.
func TestGone(t *testing.T) {
	for _, file := range []string{"resource.rego", "attestation/default_cpu.rego"} {
		dir := t.TempDir()
		write(t, dir, "resource.rego", no)
		write(t, dir, "attestation/default_cpu.rego", no)
		d := open(t, dir)
		res, att := d.Resource(), d.Attestation()
		for _, err := range []error{res.PutDefault(t.Context(), resource.PolicyID, yes), att.PutDefault(t.Context(), "default_cpu", yes),
			os.Remove(filepath.Join(dir, file))} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Item().Load(t.Context()); err == nil || !strings.Contains(err.Error(), "has gone") {
			t.Errorf("without %s: %v", file, err)
		}
		if allows(t, res, resource.PolicyID) != false || allows(t, att, "default_cpu") != false {
			t.Errorf("without %s a default is in force", file)
		}
		write(t, dir, file, yes)
		if err := d.Item().Load(t.Context()); err != nil {
			t.Errorf("with %s again: %v", file, err)
		}
	}
}

// TestInTheBroker gives the sets to those who use policies.
func TestInTheBroker(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "attestation/default_cpu.rego", yes)
	d := open(t, dir)
	att, res := d.Attestation(), d.Resource()
	if _, err := appraise.New(t.Context(), att, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := resource.NewGate(t.Context(), res); err != nil {
		t.Fatal(err)
	}
	if allows(t, att, "default_cpu") != true {
		t.Error("a default stands over the folder's policy")
	}
	ids, err := att.IDs(t.Context())
	if err != nil || !slices.Contains(ids, "default_gpu") || slices.Contains(ids, resource.PolicyID) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Errorf("attestation policies are %v, %v", ids, err)
	}
	if ids, err := res.IDs(t.Context()); err != nil || !slices.Equal(ids, []string{resource.PolicyID}) {
		t.Errorf("resource policies are %v, %v", ids, err)
	}
	for _, id := range []string{"none", "", "../resource", "resource"} {
		if _, err := att.Get(t.Context(), id); !errors.Is(err, rego.ErrUnknown) {
			t.Errorf("policy %q: %v", id, err)
		}
	}
	if _, err := res.Get(t.Context(), "default_cpu"); !errors.Is(err, rego.ErrUnknown) {
		t.Errorf("an attestation policy among the resource policies: %v", err)
	}
	for _, s := range []*Set{att, res} {
		if err := s.Put(t.Context(), "default_cpu", no); !errors.Is(err, ErrReadOnly) || !errors.Is(err, rego.ErrPolicy) {
			t.Errorf("setting a policy: %v", err)
		}
	}
}

func TestStart(t *testing.T) {
	for what, prepare := range map[string]func(dir string) string{
		"no folder": func(dir string) string { return filepath.Join(dir, "none") },
		"junk":      func(dir string) string { write(t, dir, "resource.rego", junk); return dir },
		"a bad id":  func(dir string) string { write(t, dir, "attestation/a b.rego", yes); return dir },
		"a large one": func(dir string) string {
			write(t, dir, "resource.rego", yes+strings.Repeat("#", rego.MaxText))
			return dir
		},
		"a folder for a file": func(dir string) string {
			write(t, dir, "resource.rego/x", yes)
			return dir
		},
	} {
		if _, err := Open(context.Background(), prepare(t.TempDir()), resource.PolicyID); err == nil {
			t.Errorf("%s: the broker starts", what)
		}
	}
	if ids, err := open(t, t.TempDir()).Attestation().IDs(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("an empty folder: %v, %v", ids, err)
	}
}
