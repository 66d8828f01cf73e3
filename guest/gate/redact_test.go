package gate

import "testing"

func TestRedactSource(t *testing.T) {
	s := &secrets{}
	for _, x := range []string{"default", "hunter22", "8081"} {
		s.add(x, "x")
	}
	for line, want := range map[string]string{
		`i.Args in defaults.ExecProcessRequest.allowed_commands`: `i.Args in defaults.ExecProcessRequest.allowed_commands`,
		`x == "hunter22"; default_x`:                             `x == "(not shown)"; default_x`,
		`x == "a_hunter22b"`:                                     `x == "a_(not shown)b"`,
		"x == `hunter22\\` default \"":                           "x == `(not shown)\\` (not shown) \"",
		`x == "a\"hunter22" + 8081 + 18081`:                      `x == "a\"(not shown)" + (not shown) + 18081`,
		`"open hunter22`:                                         `"open (not shown)`,
		``:                                                       ``,
	} {
		if got := s.redactSource(line); got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
	if (*secrets)(nil).redactSource("x") != "x" {
		t.Error("without secrets")
	}
}
