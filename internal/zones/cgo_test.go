package zones

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestOneProgramHasC keeps C in cloister-pkcs11: its packages, which are not seen without cgo, obey the zones too, and nobody
// else imports what they do.
func TestOneProgramHasC(t *testing.T) {
	const binding = "github.com/miekg/pkcs11"
	cmd := exec.Command("go", "list", "-e", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "./...")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOOS=linux", "GOARCH=amd64")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	may := map[string][]string{ // who may import what has C in it
		binding:                           {module + "/broker/pkcs11/token"},
		module + "/broker/pkcs11/token":   {module + "/broker/pkcs11/command"},
		module + "/broker/pkcs11/command": {module + "/cmd/cloister-pkcs11"},
		module + "/cmd/cloister-pkcs11":   nil,
		"C":                               nil,
	}
	seen := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		words := strings.Fields(line)
		for _, imp := range words[1:] {
			allowedHere, restricted := may[imp]
			if !restricted {
				continue
			}
			seen[imp] = true
			if len(allowedHere) != 1 || allowedHere[0] != words[0] {
				t.Errorf("%s imports %s: only %v may, the rest has no C in it", words[0], imp, allowedHere)
			}
		}
		if strings.HasPrefix(words[0], module+"/broker/pkcs11") {
			for _, imp := range words[1:] {
				if z := zone(imp); z != "" && z != "broker" && z != "tee" && z != "wire" && z != "internal" {
					t.Errorf("%s imports %s", words[0], imp)
				}
			}
		}
	}
	if !seen[binding] || !seen[module+"/broker/pkcs11/command"] {
		t.Fatal("the walk did not see the program with C in it")
	}
}
