package agent

import (
	"os"
	"path/filepath"
	"testing"
)

// TestProcessorsOnline: the number asked for is of all processors, so that a request that adds none is done at once.
func TestProcessorsOnline(t *testing.T) {
	for _, tc := range []struct {
		name       string
		switches   map[string]string // "" is a processor without one
		ask, want  int
		afterwards map[string]string
	}{
		{"memory only", map[string]string{"cpu0": ""}, 1, 1, nil},
		{"one more", map[string]string{"cpu0": "", "cpu1": "1", "cpu2": "0"}, 3, 3, map[string]string{"cpu2": "1"}},
		{"no more than asked", map[string]string{"cpu0": "1", "cpu1": "0", "cpu2": "0"}, 2, 2, map[string]string{"cpu1": "1", "cpu2": "0"}},
		{"not there yet", map[string]string{"cpu0": ""}, 2, 1, nil},
		{"more than asked", map[string]string{"cpu0": "", "cpu1": "1"}, 1, 2, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "cpufreq"), 0o700); err != nil {
				t.Fatal(err)
			}
			for name, state := range tc.switches {
				if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
					t.Fatal(err)
				}
				if state == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name, "online"), []byte(state+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := processorsOnline(dir, tc.ask)
			if err != nil || got != tc.want {
				t.Errorf("%d are online, want %d (error %v)", got, tc.want, err)
			}
			for name, want := range tc.afterwards {
				text, err := os.ReadFile(filepath.Join(dir, name, "online"))
				if err != nil || string(text)[:1] != want {
					t.Errorf("%s is %q, want %s (error %v)", name, text, want, err)
				}
			}
		})
	}
}
