package genpolicy

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestTextsAreBounded: a manifest of a few kilobytes cannot make gigabytes of texts, and one of many entries takes no time that grows with
// their square.
func TestTextsAreBounded(t *testing.T) {
	long := "env: [{name: A, value: " + strings.Repeat("x", 60_000) + "}], "
	list := func(n int, each string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(strings.ReplaceAll(each, "%d", fmt.Sprint(i)) + ", ")
		}
		return b.String()
	}
	doubling := "env: [{name: A0, value: " + strings.Repeat("x", 1000) + "}, "
	for i := range 40 {
		doubling += fmt.Sprintf("{name: A%d, value: $(A%d)$(A%d)}, ", i+1, i, i)
	}
	for name, c := range map[string]struct{ container, want string }{
		"doubling":         {doubling + "]", "exceeds the 65536"},
		"arguments":        {long + "args: [" + list(2000, "$(A)") + "]", "args[278]: the pod's variables and arguments have more than"},
		"words of a probe": {long + "livenessProbe: {exec: {command: [" + list(2000, "$(A)") + "]}}", "more than a policy can have"},
		"word of a probe":  {long + "livenessProbe: {exec: {command: [" + strings.Repeat("$(A)", 20_000) + "]}}", "exceeds the 65536"},
		"same text":        {"env: [{name: B, value: &x " + strings.Repeat("x", 60_000) + "}, " + list(2000, "{name: A%d, value: *x}") + "]", "more than a policy can have"},
		"variables":        {"env: [" + list(100_000, "{name: A%d, value: b}") + "]", ""},
		"volume mounts":    {"volumeMounts: [" + list(100_000, "{name: v, mountPath: /m%d}") + "]", "there are 100000, at most 4096"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.NewReplacer("%SPEC", "volumes: [{name: v, emptyDir: {}}]", "%C", c.container).Replace(onePod)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := generate(t, text, Options{})
			t.Log(time.Since(start))
			runtime.ReadMemStats(&after)
			if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %.300v, want %q", err, c.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<30 {
				t.Errorf("%d MiB of memory were taken", n>>20)
			}
		})
	}
}
