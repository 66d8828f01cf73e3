package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/host/doctor"
	"github.com/cloister/cloister/host/vmm/qemu"
	"github.com/cloister/cloister/internal/paths"
)

func doctorCmd(a *app) *cobra.Command {
	var caFile string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this host can do, and why not more",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dirs, err := paths.Default()
			if err != nil {
				return err
			}
			if caFile != "" {
				return a.writeTPMRoots(c, dirs, caFile)
			}
			r := doctor.Probe(c.Context(), doctor.Host{Home: dirs.Home})
			if a.json {
				if err := a.printJSON(r); err != nil {
					return err
				}
				return r.Err()
			}
			a.printChecks(r.Checks)
			fmt.Fprintf(a.stdout, "\naccelerator: %s (%s)\ntee: %s (%s)\n", r.Accel, r.AccelReason, r.TEE, r.TEEReason)
			return r.Err()
		},
	}
	c.Flags().StringVar(&caFile, "tpm-ca", "", "write the root certificate of this host's software TPMs to FILE, for a broker that shall trust them")
	return c
}

// writeTPMRoots exports the certificate that endorses this host's software TPMs, making the authority when there is none.
func (a *app) writeTPMRoots(c *cobra.Command, dirs paths.Dirs, file string) error {
	root, err := qemu.TPMRoots(c.Context(), dirs.TPMCA())
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(root)
	if err != nil {
		return fmt.Errorf("reading the TPM root certificate: %w", err)
	}
	if err := os.WriteFile(file, pem, 0o644); err != nil {
		return fmt.Errorf("writing the TPM root certificate: %w", err)
	}
	fmt.Fprintf(a.stdout, "%s: root of the endorsement keys of this host's software TPMs\n", file)
	return nil
}
