package sandbox

import (
	"log/slog"
	"testing"

	"github.com/cloister/cloister/host/runtimeconfig"
)

// TestScratchSize: only a confidential pod whose policy knows such disks gets them.
func TestScratchSize(t *testing.T) {
	document := func(policy string) []byte {
		return []byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"policy.rego\" = '''\npackage agent_policy\n" + policy + "'''\n")
	}
	const knows = "is_upper(s) if \"X-kata.overlay-upper\" in s.options\n"
	for name, c := range map[string]struct {
		tee              string
		mib              int
		initdata, policy []byte
		want             int64
	}{
		"known":                {"tpm", 100, document(knows), nil, 100 << 20},
		"off":                  {"tpm", 0, document(knows), nil, 0},
		"of before":            {"tpm", 100, document(""), nil, 0},
		"another in its place": {"tpm", 100, document(knows), []byte("package agent_policy"), 0},
		"set later":            {"tpm", 100, document(""), []byte(knows), 100 << 20},
		"broken":               {"tpm", 100, []byte("["), nil, 0},
		"sandboxed":            {"none", 100, document(knows), nil, 0},
	} {
		r := runtimeconfig.Default()
		r.Sandbox.TEE, r.Storage.ScratchMiB = c.tee, c.mib
		s := &Sandbox{runtime: &r, log: slog.New(slog.DiscardHandler)}
		s.cfg.Runtime = &runtimeconfig.Effective{Initdata: c.initdata, Policy: c.policy}
		if got := s.scratchSize(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
