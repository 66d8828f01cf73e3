package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/wire/initdata"
)

// sandboxedFeature is the name under which a guest in sandboxed mode shows itself.
const sandboxedFeature = "cloister-sandboxed"

// errSandboxed is why such a guest proves nothing.
var errSandboxed = errors.New("the guest runs in sandboxed mode")

// errProvable stops a sandboxed guest where it could be mistaken for a proven one.
var errProvable = errors.New("sandboxed mode is refused on a machine that can prove what runs in it")

// refuseProof returns an error when the machine has, or announces, a TEE or a TPM. root is that of the files which show
// the platform. Firmware announces a TPM in an ACPI table, so that drivers need not be loaded to find out.
func refuseProof(ctx context.Context, root string) error {
	for _, table := range []string{"TPM2", "TCPA", "CCEL"} {
		switch _, err := os.Lstat(filepath.Join(root, "sys/firmware/acpi/tables", table)); {
		case err == nil:
			return fmt.Errorf("%w: the firmware has the table %s", errProvable, table)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("looking for a TPM: %w", err)
		}
	}
	prover, err := attest.Detect(ctx, root)
	if err == nil {
		return fmt.Errorf("%w: it has a %s", errProvable, prover.TEE())
	}
	// No platform at all is the one good answer; a device that is there and does not work is not it.
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, attest.ErrUnsupported) {
		return fmt.Errorf("%w: %w", errProvable, err)
	}
	return nil
}

// refuseInitdata returns an error when a device with initdata is attached: somebody expects it to count.
func refuseInitdata(sys, dev string) error {
	_, err := readInitdata(sys, dev)
	if errors.Is(err, initdata.ErrNoInitdata) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.New("initdata is attached to a guest in sandboxed mode, which takes none")
}
