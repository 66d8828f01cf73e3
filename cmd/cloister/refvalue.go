package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/refvalue"
	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/host/sandbox"
	"github.com/cloister/cloister/wire/guestimage"
)

func refvalueCmd(a *app) *cobra.Command {
	return group("refvalue", "Compute and register the measurements to expect",
		refvalueComputeCmd(a), refvalueAddCmd(a), refvalueListCmd(a), refvalueDiffCmd(a), refvalueRemoveCmd(a))
}

func refvalueComputeCmd(a *app) *cobra.Command {
	var (
		pf           podFlags
		image        string
		initdataFile string
		runtimeFile  string
		kernelAppend string
		events       bool
		out          string
	)
	c := &cobra.Command{
		Use:   "compute POD.yaml",
		Short: "Compute the PCR values that a boot of this pod must show, from the artefacts",
		Long: "Computes, from firmware, kernel, initrd, command line, machine size and initdata, the PCR values of a boot of exactly\n" +
			"these. Nothing is booted and nothing is typed in. The pod is read for the size of its machine.\n" +
			"With --runtime-config the boot is the one that the container runtime makes of the pod: size, files and command line are\n" +
			"as that configuration and the pod's annotations say, on a node with at least this machine's processors and memory. The\n" +
			"file may then have several workloads: the values of all of them are accepted.",
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if initdataFile == "" && runtimeFile == "" {
				return needInitdata()
			}
			var document []byte
			var err error
			if initdataFile != "" {
				if document, err = os.ReadFile(initdataFile); err != nil {
					return fmt.Errorf("reading the initdata: %w", err)
				}
			}
			var r *refvalue.Result
			if runtimeFile != "" {
				r, err = a.runtimeValues(c.Context(), runtimeFile, args[0], document)
			} else {
				var in refvalue.Input
				if in, err = pf.boot(c.Context(), a, args[0], image); err != nil {
					return err
				}
				in.Initdata = document
				if kernelAppend != "" {
					in.Cmdline += " " + kernelAppend
				}
				r, err = refvalue.Compute(in)
			}
			if err != nil {
				return err
			}
			if out != "" {
				text, err := json.MarshalIndent(r.Values, "", "  ")
				if err != nil {
					return fmt.Errorf("encoding the values: %w", err)
				}
				if err := a.write(out, append(text, '\n')); err != nil {
					return err
				}
			}
			if a.json {
				return a.printJSON(r)
			}
			a.printValues(r.Values)
			if events {
				a.printBoots(r.Boots)
			}
			return nil
		},
	}
	pf.add(c)
	addOutput(c, &out)
	c.Flags().StringVar(&image, "guest", "", "folder of the guest image (default: the one built last)")
	c.Flags().StringVar(&initdataFile, "initdata", "", "initdata document of the pod")
	c.Flags().StringVar(&kernelAppend, "kernel-append", "", "what 'cloister run' will add to the kernel command line")
	c.Flags().StringVar(&runtimeFile, "runtime-config", "", "configuration of the container runtime: for a pod that Kubernetes runs, not 'cloister run'")
	c.Flags().BoolVar(&events, "events", false, "explain every event that goes into the registers")
	c.MarkFlagsMutuallyExclusive("runtime-config", "guest")
	c.MarkFlagsMutuallyExclusive("runtime-config", "kernel-append")
	return c
}

func needInitdata() error {
	return hintError{usageError{errors.New("the pod's initdata is not known")},
		"give --initdata FILE, or with --runtime-config a pod that has the annotation cloister.dev/initdata"}
}

// boot is what `cloister run` boots for a pod, without its initdata.
func (f *podFlags) boot(ctx context.Context, a *app, pod, image string) (refvalue.Input, error) {
	plan, err := f.plan(ctx, a, pod)
	if err != nil {
		return refvalue.Input{}, err
	}
	dir, err := imageDir(image)
	if err != nil {
		return refvalue.Input{}, err
	}
	m, err := guestimage.Load(dir)
	if err != nil {
		return refvalue.Input{}, err
	}
	if err := m.Verify(dir); err != nil {
		return refvalue.Input{}, err
	}
	return refvalue.Input{
		Kernel: filepath.Join(dir, m.Kernel.Path), Initrd: filepath.Join(dir, m.Initrd.Path), Cmdline: m.Cmdline,
		FirmwareCode: m.Firmware.CodePath, FirmwareVars: m.Firmware.VarsPath,
		Machines: []refvalue.Machine{{VCPUs: plan.Resources.VCPUs, MemoryMiB: plan.Resources.MemoryMiB}},
	}, nil
}

// runtimeValues are the values of all pods in a manifest that the container runtime starts. A document stands for the initdata of all;
// without one it is that of each pod's annotation, and pods that have none are left out.
func (a *app) runtimeValues(ctx context.Context, file, manifest string, document []byte) (*refvalue.Result, error) {
	pods, err := readPodSizes(manifest)
	if err != nil {
		return nil, err
	}
	all := &refvalue.Result{Values: map[string][]string{}}
	for _, p := range pods {
		in, err := runtimeBoot(ctx, file, p)
		if err == nil && document != nil {
			in.Initdata = document
		}
		if err == nil && in.Initdata == nil {
			if len(pods) > 1 {
				fmt.Fprintf(a.stderr, "warning: %s has no initdata and is left out\n", p.object)
			}
			continue
		}
		var r *refvalue.Result
		if err == nil {
			r, err = refvalue.Compute(in)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.object, err)
		}
		for name, values := range r.Values {
			for _, v := range values {
				if !slices.Contains(all.Values[name], v) {
					all.Values[name] = append(all.Values[name], v)
				}
			}
		}
		for _, b := range r.Boots {
			if len(pods) > 1 {
				b.Machine = p.object + ", " + b.Machine
			}
			all.Boots = append(all.Boots, b)
		}
	}
	if len(all.Boots) == 0 {
		return nil, needInitdata()
	}
	return all, nil
}

// runtimeBoot is what the container runtime boots for a pod, with the initdata of its annotation if it has one.
func runtimeBoot(ctx context.Context, file string, p podSize) (refvalue.Input, error) {
	e, err := loadRuntime(file, p.annotations)
	if err != nil {
		return refvalue.Input{}, err
	}
	if tee := e.Config.Sandbox.TEE; tee != runtimeconfig.TEETPM {
		return refvalue.Input{}, hint(fmt.Errorf("the configuration %s has sandbox.tee = %q, whose measurements are not in a TPM", file, tee),
			"this command knows tee = \"tpm\"")
	}
	f, err := sandbox.Files(&e.Config)
	if err != nil {
		return refvalue.Input{}, err
	}
	o, err := sandbox.OverheadOn(ctx, doctor.Host{}, &e.Config, runtimeconfig.TEETPM)
	if err != nil {
		return refvalue.Input{}, err
	}
	size, err := sandbox.Size(&e.Config, o, p.request)
	if err != nil {
		return refvalue.Input{}, err
	}
	return refvalue.Input{
		Kernel: f.Kernel, Initrd: f.Initrd, Cmdline: f.Cmdline, FirmwareCode: f.Firmware, FirmwareVars: f.FirmwareVars,
		Machines: []refvalue.Machine{{VCPUs: size.VCPUs, MemoryMiB: size.MemoryMiB}}, Initdata: e.Initdata,
	}, nil
}

func (a *app) printValues(values map[string][]string) {
	var rows [][]string
	for _, name := range sortedKeys(values) {
		for i, v := range values[name] {
			label := name
			if i > 0 {
				label = ""
			}
			rows = append(rows, []string{label, v})
		}
	}
	a.table("reference value|accepted", rows)
}

func (a *app) printBoots(boots []refvalue.Boot) {
	for _, b := range boots {
		fmt.Fprintf(a.stdout, "\n%s, %s\n", b.Machine, b.Loader)
		var rows [][]string
		for _, e := range b.Events {
			rows = append(rows, []string{fmt.Sprintf("PCR %d", e.PCR), e.Type, e.Digest, e.What})
		}
		a.table("", rows)
	}
}
