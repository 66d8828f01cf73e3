package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cloister/cloister/test/kubepod"
)

// What is asked has to be allowed again and again, by both engines.
func TestPolicyRows(t *testing.T) {
	t.Chdir("..") // as the benchmark is run
	t.Setenv(upstreamRules, "")
	var b bytes.Buffer
	if err := runPolicy(t.Context(), &b, 1); err != nil {
		t.Fatal(err)
	}
	_, last := kubepod.Large(1)
	for _, x := range kubepod.Asks(last, kubepod.ID(1)) {
		if !strings.Contains(b.String(), "\n"+x.Name+"\t") {
			t.Errorf("no row %q in\n%s", x.Name, &b)
		}
	}
}
