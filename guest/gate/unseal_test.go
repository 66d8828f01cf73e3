package gate

import (
	"testing"
)

func TestAllowUnseal(t *testing.T) {
	file := SealedFile{ContainerID: "c1", Destination: "/etc/app", Name: "key", Path: "/shared/vol/key", SHA256: "00ff"}
	const variable = "KEY=sealed.a.b.c"
	for name, tc := range map[string]struct {
		text           string
		file, variable bool
	}{
		"silent policy":     {"", false, true},
		"all allowed":       {"default CreateContainerRequest := true", false, true},
		"refused":           {"default UnsealFileRequest := false\ndefault UnsealVariableRequest := false", false, false},
		"allowed":           {"default UnsealFileRequest := true\ndefault UnsealVariableRequest := true", true, true},
		"by constants":      {"UnsealFileRequest := true\nUnsealVariableRequest := false", true, false},
		"refused failing":   {"default AllowRequestsFailingPolicy := true", true, true},
		"no default, yes":   {"UnsealFileRequest if input.sha256 == \"00ff\"\nUnsealVariableRequest if input.variable == \"KEY=sealed.a.b.c\"", true, true},
		"no default, no":    {"UnsealFileRequest if input.sha256 == \"00\"\nUnsealVariableRequest if input.variable == \"KEY=sealed\"", false, false},
		"by container":      {"UnsealFileRequest if input.container_id == \"c2\"\nUnsealVariableRequest if input.container_id == \"c2\"", false, false},
		"by place and name": {"UnsealFileRequest if [input.destination, input.name, input.path] == [\"/etc/app\", \"key\", \"/shared/vol/key\"]", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			e := engine(t, head+tc.text)
			if err := e.AllowUnsealFile(t.Context(), file); (err == nil) != tc.file {
				t.Errorf("a file: %v", err)
			}
			if err := e.AllowUnsealVariable(t.Context(), "c1", variable); (err == nil) != tc.variable {
				t.Errorf("a variable: %v", err)
			}
		})
	}
	e := NewOpen(Options{})
	if e.AllowUnsealFile(t.Context(), file) != nil || e.AllowUnsealVariable(t.Context(), "c1", variable) != nil {
		t.Error("a guest without a policy refuses")
	}
}
