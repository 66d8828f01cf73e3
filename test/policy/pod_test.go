// Package policy_test joins the zones: policies written by the author are
// enforced by the guest's engine. It is the only place where both meet, as they
// do in production: through the text of the policy and the bytes of requests.
package policy_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/cloister/cloister/author/manifest"
	"github.com/cloister/cloister/author/policy"
	"github.com/cloister/cloister/guest/gate"
	"github.com/cloister/cloister/wire/launch"
	"github.com/cloister/cloister/wire/policyinput"
)

// images resolves every reference to a digest made from its text.
type images struct{}

func (images) Resolve(_ context.Context, ref string) (manifest.Image, error) {
	repo, _, _ := strings.Cut(ref, ":")
	return manifest.Image{
		Ref: repo + "@sha256:" + strings.Repeat(fmt.Sprintf("%02x", len(ref)), 32),
		Config: manifest.ImageConfig{
			Entrypoint: []string{"/bin/app"},
			Env:        []string{"PATH=/bin", "LANG=C"},
			WorkingDir: "/home",
		},
	}, nil
}

func loadPlan(t testing.TB, file string) (*launch.Plan, *manifest.Manifest) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Parse(manifest.Source{Name: file, Data: text})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := manifest.Plan(t.Context(), m, images{})
	if err != nil {
		t.Fatal(err)
	}
	return plan, m
}

var allowedExec = [][]string{{"/bin/date", "-u"}}

func newEngine(t testing.TB, plan *launch.Plan, opts policy.Options) *gate.Engine {
	t.Helper()
	text, err := policy.Generate(plan, opts)
	if err != nil {
		t.Fatal(err)
	}
	e, err := gate.New(text, gate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// full is the pod of testdata/full.yaml with its engine, nothing yet requested.
func full(t testing.TB) (*gate.Engine, *launch.Plan) {
	t.Helper()
	plan, m := loadPlan(t, "testdata/full.yaml")
	return newEngine(t, plan, policy.Options{AllowExec: allowedExec, ExecCommands: manifest.ExecCommands(m)}), plan
}

func ask(e *gate.Engine, req proto.Message) error {
	return e.Allow(context.Background(), policyinput.RuleName(req), req)
}

func mustAllow(t testing.TB, e *gate.Engine, req proto.Message) {
	t.Helper()
	if err := ask(e, req); err != nil {
		t.Fatalf("%s should be allowed: %v", policyinput.RuleName(req), err)
	}
}

// sendFiles sends the files of a plan.
func sendFiles(t testing.TB, e *gate.Engine, plan *launch.Plan) {
	t.Helper()
	for _, f := range plan.Files {
		mustAllow(t, e, f.Request)
	}
}

// exited is what the guest says when the first process of a container has ended.
func exited(t testing.TB, e *gate.Engine, id string, status int) {
	t.Helper()
	if err := e.Exited(context.Background(), id, status); err != nil {
		t.Fatalf("the end of container %s: %v", id, err)
	}
}

// protoregistryType makes an empty message of a linked-in type.
func protoregistryType(d protoreflect.MessageDescriptor) (proto.Message, error) {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return nil, err
	}
	return mt.New().Interface(), nil
}
