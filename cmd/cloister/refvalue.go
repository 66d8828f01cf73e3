package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/refvalue"
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
		kernelAppend string
		events       bool
		out          string
	)
	c := &cobra.Command{
		Use:   "compute POD.yaml",
		Short: "Compute the PCR values that a boot of this pod must show, from the artefacts",
		Long: "Computes, from firmware, kernel, initrd, command line, machine size and initdata, the PCR values of a boot of exactly\n" +
			"these. Nothing is booted and nothing is typed in. The pod is read for the size of its machine.",
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			plan, err := pf.plan(c.Context(), a, args[0])
			if err != nil {
				return err
			}
			dir, err := imageDir(image)
			if err != nil {
				return err
			}
			m, err := guestimage.Load(dir)
			if err != nil {
				return err
			}
			if err := m.Verify(dir); err != nil {
				return err
			}
			document, err := os.ReadFile(initdataFile)
			if err != nil {
				return fmt.Errorf("reading the initdata: %w", err)
			}
			in := refvalue.Input{
				Kernel: filepath.Join(dir, m.Kernel.Path), Initrd: filepath.Join(dir, m.Initrd.Path), Cmdline: m.Cmdline,
				FirmwareCode: m.Firmware.CodePath, FirmwareVars: m.Firmware.VarsPath, Initdata: document,
				Machines: []refvalue.Machine{{VCPUs: plan.Resources.VCPUs, MemoryMiB: plan.Resources.MemoryMiB}},
			}
			if kernelAppend != "" {
				in.Cmdline += " " + kernelAppend
			}
			r, err := refvalue.Compute(in)
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
	c.Flags().StringVar(&kernelAppend, "kernel-append", "", "what `cloister run` will add to the kernel command line")
	c.Flags().BoolVar(&events, "events", false, "explain every event that goes into the registers")
	needs(c, "initdata")
	return c
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
