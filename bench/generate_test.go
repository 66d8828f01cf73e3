package main

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/wire/initdata"
)

func TestTextTar(t *testing.T) {
	words := generateWords()
	sum := func(seed uint64) (out [32]byte) {
		var b bytes.Buffer
		if err := textTar(&b, words, seed, 1e6, map[string]string{"etc/passwd": "x", "etc/group": "y"}); err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(b.Bytes())
	}
	if first, again := sum(1), sum(1); first != again || first == sum(2) {
		t.Error("layers have to be the same in each run, and differ from one another")
	}
}

func TestCheckPolicy(t *testing.T) {
	manifest := func(upTo int) string {
		var policy strings.Builder
		for n := range upTo {
			policy.WriteString("/work/of-" + string(rune('0'+n/10)) + string(rune('0'+n%10)) + "\n")
		}
		text := strings.ReplaceAll(policy.String(), "-0", "-")
		doc := initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{"policy.rego": text}}
		raw, err := doc.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return "metadata:\n  annotations:\n    " + initdata.Annotation + ": " + initdata.EncodeAnnotation(raw) + "\n"
	}
	if err := checkPolicy(manifest(generateContainers)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "kind: Pod\n", manifest(generateContainers - 1), initdata.Annotation + ": nonsense\n"} {
		if checkPolicy(bad) == nil {
			t.Errorf("%q is taken for a policy of all containers", bad)
		}
	}
}

func TestOtherFiles(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "other")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(from, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := otherFiles(to, from, "r:1"); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("without files: %v", err)
	}
	write("rules.rego", "package agent_policy\n")
	write("genpolicy-settings.json", `{"cluster_config": {}}`)
	if otherFiles(to, from, "r:1") == nil {
		t.Error("settings without a pause image are taken")
	}
	write("genpolicy-settings.json", `{"cluster_config": {"pause_container_image": "far.example/pause"}}`)
	if err := otherFiles(to, from, "r:1"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(to, "settings/genpolicy-settings.json"))
	if err != nil || !strings.Contains(string(text), `"r:1/app-0:1"`) {
		t.Errorf("%s, %v", text, err)
	}
}
