package pkcs11_test

import (
	"errors"
	"testing"

	"github.com/cloister/cloister/broker/plugin"
	"github.com/cloister/cloister/broker/plugin/resources"
	"github.com/cloister/cloister/broker/resource"
	"github.com/cloister/cloister/broker/resource/pkcs11"
	"github.com/cloister/cloister/broker/store"
	"github.com/cloister/cloister/test/softhsm"
)

// TestResourcesInSoftHSM goes through the plugin that serves resources.
func TestResourcesInSoftHSM(t *testing.T) {
	h := softhsm.New(t)
	b, err := pkcs11.New(t.Context(), pkcs11.Config{Module: softhsm.Module, TokenLabel: softhsm.Label, PINFile: h.PINFile, Helper: softhsm.Helper(t),
		Environment: []string{softhsm.Variable}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := resources.New(b)
	do := func(method string, query map[string]string, body string) (string, error) {
		a, err := p.Handle(t.Context(), &plugin.Request{Method: method, Path: []string{"r", "t", "g"}, Query: query, Body: []byte(body)})
		if err != nil {
			return "", err
		}
		return string(a.Body), nil
	}
	if _, err := do("GET", nil, ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a missing resource: %v", err)
	}
	for _, secret := range []string{"one", "two"} {
		if _, err := do("POST", nil, secret); err != nil {
			t.Fatal(err)
		}
		if got, err := do("GET", nil, ""); err != nil || got != secret {
			t.Errorf("%q, %v", got, err)
		}
	}
	for _, query := range []map[string]string{{"version": "1"}, {"versions": ""}} {
		if got, err := do("GET", query, ""); !resources.Unsupported(err) {
			t.Errorf("%v: %q, %v", query, got, err)
		}
	}
	path, err := resource.ParsePath([]string{"r", "t", "g"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), path); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a removed resource: %v", err)
	}
}
