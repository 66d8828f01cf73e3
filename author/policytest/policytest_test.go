package policytest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	lines := `{"kind":"StartContainerRequest","request":{"container_id":"a"}}

{"kind":"CopyFileRequest","request":{"path":"/x","file_type":"Regular"},"allowed":false,"description":"d"}
{"kind":"ContainerExited","request":{"container_id":"a","status":0}}
{"kind":"CreateContainerRequest","request":{"storages":[{"driver":"blk"}],"OCI":{"Process":{"Args":["x"]}}}}
`
	cases, err := Read(strings.NewReader(lines))
	if err != nil || len(cases) != 4 {
		t.Fatalf("got %d cases, %v", len(cases), err)
	}
	if cases[1].Allowed == nil || *cases[1].Allowed || cases[1].Description != "d" || cases[0].Allowed != nil {
		t.Errorf("got %+v", cases[1])
	}
	copied := cases[1].Request.(map[string]any)
	if v, there := copied["data_sha256"]; !there || v != nil || copied["file_size"] == nil {
		t.Errorf("a copy has no defaults: %v", copied)
	}
	create := cases[3].Request.(map[string]any)
	storage := create["storages"].([]any)[0].(map[string]any)
	process := create["OCI"].(map[string]any)["Process"].(map[string]any)
	if storage["shared"] != false || storage["fs_group"] != nil || len(storage["options"].([]any)) != 0 || process["Cwd"] != "" || create["string_user"] != nil {
		t.Errorf("a create has no defaults: %v", create)
	}
	list := `[{"kind":"StartContainerRequest","allowed":true},{"kind":"DestroySandboxRequest","allowed":false,"state":{"a":1},"request":{}}]`
	if cases, err = Read(strings.NewReader(list)); err != nil || len(cases) != 2 {
		t.Errorf("got %v, %v", cases, err)
	}
	for _, bad := range []string{"{", "[", `{"request":{}}`, `{"kind":"StartContainerRequest","request":7}`, `[{"kind":"CreateContainerRequest","request":{"storages":[7]}}]`,
		`{"kind":"CreateContainerRequest","request":{"OCI":[]}}`} {
		if _, err := Read(strings.NewReader(bad)); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

// TestKinds: a kind that nobody asks about is refused before anything is replayed, with the one that was meant.
func TestKinds(t *testing.T) {
	kinds := Kinds()
	for _, k := range []string{"CreateContainerRequest", "GuestDetailsRequest", "MemAgentMemcgConfig", "HostStorageRequest", "ContainerExited", "LoadPolicyFragmentRequest"} {
		if n, _ := slices.BinarySearch(kinds, k); n == len(kinds) || kinds[n] != k {
			t.Errorf("%s is no kind", k)
		}
	}
	for kind, near := range map[string]string{
		"CreateContainer": "CreateContainerRequest", "WriteStdin": "WriteStreamRequest", "createcontainerrequest": "CreateContainerRequest",
		"StartContianerRequest": "StartContainerRequest", "ContainerExit": "ContainerExited", "Storage": "HostStorageRequest", "x": "", strings.Repeat("CopyFileRequest", 1e6): "",
	} {
		_, err := Read(strings.NewReader(`[{"kind":"StartContainerRequest"},{"kind":"` + kind + `"}]`))
		var e *KindError
		if !errors.As(err, &e) || e.Near != near || !strings.HasPrefix(err.Error(), "request 2: ") || len(err.Error()) > 200 {
			t.Errorf("%.80s: %.300v, want %q", kind, err, near)
		}
	}
	cases, err := Read(strings.NewReader(`{"kind":"HostStorageRequest","request":{"fstype":"ext4"}}
{"kind":"LoadPolicyFragmentRequest","request":{"issuer":"did:x509:0"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if m := cases[0].Request.(map[string]any); m["options"] == nil {
		t.Errorf("the storage has no defaults: %v", m)
	}
	if m := cases[1].Request.(map[string]any); m["issuer"] != "did:x509:0" {
		t.Errorf("a member of the fragment is lost: %v", m)
	}
}

// engine allows what it has not allowed before.
type engine map[string]any

func (e engine) Judge(_ context.Context, rule string, _ any) error {
	if e[rule] != nil {
		return errors.New("again")
	}
	e[rule] = true
	return nil
}

func (e engine) State(context.Context) (map[string]any, error) {
	out := map[string]any{}
	for k, v := range e {
		out[k] = v
	}
	return out, nil
}

func TestRun(t *testing.T) {
	cases, err := Read(strings.NewReader(strings.NewReplacer("A", "StartContainerRequest", "B", "DestroySandboxRequest").Replace(
		`[{"kind":"A"},{"kind":"A"},{"kind":"A","allowed":false},{"kind":"B","allowed":false}]`)))
	if err != nil {
		t.Fatal(err)
	}
	var got []Result
	if err := Run(t.Context(), engine{}, cases, func(r Result) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		allowed, unexpected bool
		changes             int
	}{{true, false, 1}, {false, true, 0}, {false, false, 0}, {true, true, 1}} {
		r := got[i]
		if r.Number != i+1 || r.Allowed != want.allowed || r.Unexpected != want.unexpected || len(r.Changes) != want.changes || r.Allowed != (r.Reason == "") {
			t.Errorf("%d: got %+v", i, r)
		}
	}
	stop := errors.New("stop")
	if err := Run(t.Context(), engine{}, cases, func(Result) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(`{"kind":"CreateContainerRequest","request":{"storages":[{"driver":"blk"}],"OCI":{"Process":{"Args":["x"]}}}}`)
	f.Fuzz(func(_ *testing.T, text string) { _, _ = Read(strings.NewReader(text)) })
}
