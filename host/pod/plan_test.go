package pod

import (
	"os"
	"strings"
	"testing"
)

func TestInvalidPlans(t *testing.T) {
	tests := map[string]func(*Options){
		"no plan":           func(o *Options) { o.Plan = nil },
		"name":              func(o *Options) { o.Plan.Name = "../x" },
		"0 containers":      func(o *Options) { o.Plan.Containers = nil },
		"used twice":        func(o *Options) { o.Plan.Containers = append(o.Plan.Containers, o.Plan.Containers[0]) },
		"restart policy is": func(o *Options) { o.Plan.Containers[0].RestartPolicy = "Sometimes" },
		"container_id":      func(o *Options) { o.Plan.Containers[0].Create.ContainerId = "" },
	}
	for want, edit := range tests {
		e := newEnv(t, container("app", false, ""))
		edit(&e.opts)
		if _, err := Run(t.Context(), e.opts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if entries, _ := os.ReadDir(e.dirs.Run); len(entries) != 0 {
			t.Errorf("%s: something is left in the run directory", want)
		}
	}
}
