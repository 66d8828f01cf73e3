package cri

import "testing"

// onePod asks very much of one pod, since pods of some runtimes take seconds to start.
func onePod(t *testing.T, w *world) {
	p := w.NewPod(t, w.handler, "one")
	p.Config.Linux.Resources = nil
	p.Run()
	main := p.RunContainer(t, Shell("main", "echo out; echo err >&2; "+Sleeper))
	main.Says("out\n")
	main.Says("err\n")
	for _, s := range []struct {
		name string
		run  func(*testing.T, *Pod, *Container)
	}{
		{"execSync", execSync},
		{"execStream", execStream},
		{"attach", attach},
		{"logs", logs},
		{"process", process},
		{"identity", identity},
		{"files", files},
		{"volumes", volumes},
		{"several", several},
		{"memory", memory},
		{"stats", stats},
		{"update", update},
		{"zombies", zombies},
	} {
		t.Run(s.name, func(t *testing.T) {
			m := *main
			m.t = t
			s.run(t, p, &m)
		})
	}
	main.Stop(60)
	main.ExpectExit(0)
	p.Remove()
}
