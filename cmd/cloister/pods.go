package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/host/agent"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/pod"
	"github.com/cloister/cloister/host/vmm"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/wire/guestimage"
	"github.com/cloister/cloister/wire/initdata"
)

// runFlags are the flags of `cloister run`.
type runFlags struct {
	podFlags
	initdata     string
	image        string
	tee, accel   string
	kernelAppend string
	detach       bool
	times        bool
	stdin        bool
	grace        time.Duration
}

func runCmd(a *app) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run POD.yaml",
		Short: "Run a pod in its own measured VM, and end with its exit code",
		Long: "Starts the VM, lets the guest attest itself to the broker named in the initdata, and runs the pod's containers.\n" +
			"Their output is printed; the exit code is that of the first container that did not end with 0.",
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			dirs, err := paths.Default()
			if err != nil {
				return err
			}
			if f.stdin && f.detach {
				return usageError{errors.New("--stdin and --detach exclude each other: a detached pod has no input")}
			}
			if err := a.cleanStale(c, dirs); err != nil {
				return err
			}
			spec, err := f.spec(c, dirs, args[0], a)
			if err != nil {
				return err
			}
			if f.detach {
				return a.runDetached(c, dirs, spec, f.times)
			}
			return a.runForeground(c, dirs, spec, f.times, f.stdin)
		},
	}
	f.podFlags.add(c)
	c.Flags().StringVar(&f.initdata, "initdata", "", "initdata document of this pod, made by 'cloister initdata new'")
	c.Flags().StringVar(&f.image, "guest", "", "folder of the guest image (default: the one built last)")
	c.Flags().StringVar(&f.tee, "tee", "auto", "auto, or the TEE to insist on; what is absent is an error")
	c.Flags().StringVar(&f.accel, "accel", "auto", "auto, kvm or tcg")
	c.Flags().StringVar(&f.kernelAppend, "kernel-append", "", "add to the kernel command line; this changes PCR 9, so it needs its own reference values")
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "return once the pod runs")
	c.Flags().BoolVarP(&f.stdin, "stdin", "i", false, "give standard input to the first container with stdin: true")
	c.Flags().BoolVar(&f.times, "times", false, "end with a table of how long each step took")
	c.Flags().DurationVar(&f.grace, "grace", 0, "how long containers may take to end (default: the pod's terminationGracePeriodSeconds)")
	needs(c, "initdata")
	return c
}

// spec turns the flags into what the supervisor needs.
func (f *runFlags) spec(c *cobra.Command, dirs paths.Dirs, podFile string, a *app) (*pod.Spec, error) {
	ctx := c.Context()
	// What is wrong with the command line is said before anything is asked of a registry or started.
	if err := errors.Join(oneOf("--tee", f.tee, doctor.TEEs), oneOf("--accel", f.accel, doctor.Accels)); err != nil {
		return nil, usageError{err}
	}
	document, err := os.ReadFile(f.initdata)
	if err != nil {
		return nil, hint(fmt.Errorf("reading the initdata: %w", err), "make it with `cloister initdata new -o %s %s`", f.initdata, podFile)
	}
	// The guest would find the same fault, but only when it has booted.
	if _, err := initdata.Parse(document); err != nil {
		return nil, hint(fmt.Errorf("reading the initdata %s: %w", f.initdata, err), "make it with `cloister initdata new -o FILE %s`", podFile)
	}
	pm, plan, err := f.podAndPlan(ctx, a, podFile)
	if err != nil {
		return nil, err
	}
	if s, err := pod.Lookup(dirs, plan.Name); err == nil && !s.Done() {
		return nil, explainRun(plan.Name, fmt.Errorf("running pod %s: %w", plan.Name, pod.ErrRunning))
	}
	report := doctor.Probe(ctx, doctor.Host{Home: dirs.Home})
	if err := report.Err(); err != nil {
		return nil, hint(err, "`cloister doctor` shows everything that was checked")
	}
	tee, err := report.SelectTEE(f.tee)
	if err != nil {
		return nil, hint(err, "`cloister doctor` tells what this host has")
	}
	accel, err := report.SelectAccel(f.accel)
	if err != nil {
		return nil, err
	}
	dir, err := imageDir(f.image)
	if err != nil {
		return nil, err
	}
	m, err := guestimage.Load(dir)
	if err != nil {
		return nil, err
	}
	cmdline := m.Cmdline
	if f.kernelAppend != "" {
		cmdline += " " + f.kernelAppend
	}
	fmt.Fprintf(a.stderr, "pod %s: tee %s, accelerator %s, kernel %s\n", plan.Name, tee, accel, m.Kernel.Version)
	return &pod.Spec{
		Plan: plan,
		TEE:  tee,
		VM: vmm.Config{
			Kernel: filepath.Join(dir, m.Kernel.Path), Initrd: filepath.Join(dir, m.Initrd.Path), Cmdline: cmdline,
			FirmwareCode: m.Firmware.CodePath, FirmwareVars: m.Firmware.VarsPath,
			InitdataImage: initdata.EncodeDevice(document),
			Accel:         accel,
			TPM:           &vmm.TPM{CADir: dirs.TPMCA()},
			UserNetwork:   true,
			Program:       report.QEMU,
		},
		Grace: graceOf(f.grace, pm.Pod.Spec.GracePeriodSeconds),
	}, nil
}

// graceOf is the flag, or what the manifest says; zero leaves the choice to package pod, so that "at once" is its next value.
func graceOf(flag time.Duration, seconds *int64) time.Duration {
	if flag > 0 || seconds == nil {
		return flag
	}
	return max(time.Duration(min(*seconds, 24*3600))*time.Second, 1)
}

// oneOf refuses values of a flag that no host could take.
func oneOf(flag, value string, known []string) error {
	if slices.Contains(known, value) {
		return nil
	}
	return fmt.Errorf("%s is %q, expected one of %s", flag, value, strings.Join(known, ", "))
}

func (a *app) runForeground(c *cobra.Command, dirs paths.Dirs, spec *pod.Spec, times, stdin bool) error {
	o := pod.Options{
		Spec: *spec, Dirs: dirs, Stdout: a.stdout, Stderr: a.stderr,
		OnEvent: func(e pod.Event) { a.printEvent(spec.Plan.Name, e) },
		Logger:  slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if stdin {
		o.Stdin = a.stdin
	}
	result, err := pod.Run(c.Context(), o)
	if times {
		a.printTimes(result.State.Events)
	}
	if err != nil {
		return explainRun(spec.Plan.Name, err)
	}
	if result.ExitCode != 0 {
		return exitError(result.ExitCode)
	}
	return nil
}

func (a *app) runDetached(c *cobra.Command, dirs paths.Dirs, spec *pod.Spec, times bool) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	name := spec.Plan.Name
	var events []pod.Event
	err = pod.Spawn(c.Context(), exe, dirs, *spec, func(e pod.Event) {
		events = append(events, e)
		a.printEvent(name, e)
	})
	if err == nil && !a.json {
		fmt.Fprintf(a.stdout, "%s\n", name)
	}
	if times && !a.json {
		a.printTimes(events)
	}
	if err != nil {
		return explainRun(name, err)
	}
	if !a.json {
		return nil
	}
	state, err := pod.Lookup(dirs, name)
	if err != nil {
		return err
	}
	return a.printJSON(state) // as one entry of `ps --json`; its events have the times
}

// explainRun adds the command that helps to what the guest or the broker said.
func explainRun(name string, err error) error {
	text := err.Error()
	switch {
	case strings.Contains(text, pod.ErrRunning.Error()): // text, because a supervisor in another process may have said it
		return hint(err, "`cloister stop %s` ends it; a pod of another metadata.name can run beside it", name)
	case strings.Contains(text, "is blocked by policy"):
		return hint(err, "the pod's policy was made from another manifest or does not allow this; make it anew with `cloister initdata new`")
	case strings.Contains(text, "reference value") || strings.Contains(text, "registered value"):
		return hint(err, "if the change was meant: `cloister refvalue compute` and `cloister refvalue add`; details: `cloister explain REQUEST-ID`")
	}
	return err
}

func (a *app) cleanStale(c *cobra.Command, dirs paths.Dirs) error {
	cleaned, err := pod.CleanStale(c.Context(), dirs)
	for _, name := range cleaned {
		fmt.Fprintf(a.stderr, "cleaned up after pod %s, whose supervisor was killed\n", name)
	}
	return err
}

func (a *app) printEvent(name string, e pod.Event) {
	text := e.Step
	if e.Container != "" {
		text += " " + e.Container
	}
	if e.ExitCode != nil {
		text += fmt.Sprintf(", exit code %d", *e.ExitCode)
	}
	if e.Error != "" {
		text += ": failed"
	}
	fmt.Fprintf(a.stderr, "pod %s: %-24s %6.2fs\n", name, text, e.Took.Seconds())
}

// printTimes lists the steps, and the time from the beginning of the first to the end of the last.
func (a *app) printTimes(events []pod.Event) {
	if len(events) == 0 {
		return
	}
	var rows [][]string
	begin, end := events[0].Time.Add(-events[0].Took), events[0].Time
	for _, e := range events {
		rows = append(rows, []string{e.Step, e.Container, fmt.Sprintf("%.2fs", e.Took.Seconds())})
		if e.Time.After(end) {
			end = e.Time
		}
	}
	a.table("step|container|time", append(rows, []string{"total", "", fmt.Sprintf("%.2fs", end.Sub(begin).Seconds())}))
}

// superviseName is the hidden command that a detached pod's supervisor runs.
const superviseName = "__supervise" // as package pod calls it

func superviseCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: superviseName + " FILE", Hidden: true, Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			return pod.SuperviseMain(c.Context(), args[0], slog.New(slog.NewTextHandler(a.stderr, nil)))
		},
	}
}

func psCmd(a *app) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "ps", Short: "List pods of `cloister run`", Args: cobra.NoArgs,
		Long: "Lists the pods of `cloister run`. Those that containerd runs are listed by `crictl pods` and `ctr containers list`.",
		RunE: func(c *cobra.Command, _ []string) error {
			dirs, err := paths.Default()
			if err != nil {
				return err
			}
			if err := a.cleanStale(c, dirs); err != nil {
				return err
			}
			states, err := pod.List(dirs)
			if err != nil {
				return err
			}
			if !all {
				states = slices.DeleteFunc(states, func(s pod.State) bool { return s.Done() })
			}
			if a.json {
				return a.printJSON(states)
			}
			var rows [][]string
			for _, s := range states {
				code := ""
				if s.ExitCode != nil {
					code = fmt.Sprint(*s.ExitCode)
				}
				rows = append(rows, []string{s.Name, string(s.Phase), code, s.TEE, s.Accel, s.Started.Local().Format(time.DateTime), fmt.Sprint(len(s.Containers))})
			}
			a.table("NAME|PHASE|EXIT|TEE|ACCEL|STARTED|CONTAINERS", rows)
			return nil
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also pods that have ended")
	return c
}

func logsCmd(a *app) *cobra.Command {
	var container string
	var follow bool
	c := &cobra.Command{
		Use: "logs POD", Short: "Print what a container of a pod wrote", Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			dirs, err := paths.Default()
			if err != nil {
				return err
			}
			return pod.Logs(c.Context(), dirs, args[0], pod.LogOptions{Container: container, Follow: follow, Stdout: a.stdout, Stderr: a.stderr})
		},
	}
	c.Flags().StringVarP(&container, "container", "c", "", "container (default: the first)")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the pod ends")
	return c
}

func execCmd(a *app) *cobra.Command {
	var container string
	var tty, stdin bool
	c := &cobra.Command{
		Use: "exec POD -- COMMAND [ARG...]", Short: "Run a command in a container, if the pod's policy allows it", Args: atLeast(2),
		RunE: func(c *cobra.Command, args []string) error {
			dirs, err := paths.Default()
			if err != nil {
				return err
			}
			o := pod.ExecOptions{Container: container, Argv: args[1:], TTY: tty, Stdout: a.stdout, Stderr: a.stderr}
			if stdin || tty {
				o.Stdin = a.stdin
			}
			code, err := pod.Exec(c.Context(), dirs, args[0], o)
			if err != nil {
				if agent.IsDenied(err) {
					return hint(err, "commands are allowed when the policy is made: `cloister initdata new --allow-exec '%s'`", strings.Join(args[1:], " "))
				}
				return err
			}
			if code != 0 {
				return exitError(code)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&container, "container", "c", "", "container (default: the first)")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "with a terminal")
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "with standard input")
	return c
}

func stopCmd(a *app) *cobra.Command {
	var grace time.Duration
	c := &cobra.Command{
		Use: "stop POD...", Short: "Stop pods and wait until nothing of them is left", Args: atLeast(1),
		RunE: func(c *cobra.Command, args []string) error {
			dirs, err := paths.Default()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				switch err := pod.Stop(c.Context(), dirs, name, grace); {
				case errors.Is(err, pod.ErrEnded): // what was wanted
					fmt.Fprintf(a.stderr, "pod %s has ended already\n", name)
				case errors.Is(err, pod.ErrNotFound):
					errs = append(errs, hint(err, "`cloister ps --all` lists the pods"))
					continue
				case err != nil:
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(a.stdout, "%s\n", name)
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().DurationVar(&grace, "grace", -time.Second, "how long containers may take to end; negative leaves the pod's own grace period")
	return c
}
