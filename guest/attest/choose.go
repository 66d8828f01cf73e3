package attest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// platform is one entry of the list of attesters.
type platform struct {
	tee string
	// open returns the attester, or why this machine does not have it.
	open func(ctx context.Context) (Attester, error)
}

// platforms is the whole story of what can attest, in order of preference, for a system whose files are below root.
// Platforms that this build recognises and cannot attest are listed too, so
// that the error says so instead of trying something weaker.
func platforms(root string) []platform {
	return []platform{
		{"tdx", recognised(root, "dev/tdx_guest", "sys/devices/virtual/misc/tdx_guest")},
		{"tdx", processor(root, "tdx_guest")},
		{"snp", recognised(root, "dev/sev-guest", "sys/devices/platform/sev-guest", "sys/devices/system/cpu/sev")},
		{"csv", recognised(root, "dev/csv-guest")},
		{"se", recognised(root, "dev/uv")},
		{"tpm", func(context.Context) (Attester, error) {
			t, err := openTPM(filepath.Join(root, "dev/tpmrm0"), filepath.Join(root, "dev/tpm0"))
			if err != nil {
				return nil, err // not the nil pointer in an interface
			}
			return t, nil
		}},
	}
}

// ErrUnsupported marks a platform that is there and cannot be attested. What else the machine has, for example a virtual
// TPM that its host makes, is no substitute.
var ErrUnsupported = errors.New("it is present, and this build has no attester for it")

func recognised(root string, paths ...string) func(context.Context) (Attester, error) {
	return func(context.Context) (Attester, error) {
		for _, p := range paths {
			if _, err := os.Stat(filepath.Join(root, p)); err == nil {
				return nil, fmt.Errorf("/%s: %w", p, ErrUnsupported)
			}
		}
		return nil, fmt.Errorf("no /%s", strings.Join(paths, " or /"))
	}
}

// processor recognises a platform by a flag of the processor, which needs no driver.
func processor(root, flag string) func(context.Context) (Attester, error) {
	return func(context.Context) (Attester, error) {
		text, err := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("reading the processor's flags: %w", err)
		}
		if slices.Contains(strings.Fields(string(text)), flag) {
			return nil, fmt.Errorf("processor flag %s: %w", flag, ErrUnsupported)
		}
		return nil, fmt.Errorf("no processor flag %s", flag)
	}
}

// Detect opens the attester of the platform whose files are below root, / outside of tests. Without one it
// returns an error that names every platform with the reason it was passed over.
func Detect(ctx context.Context, root string) (Attester, error) { return choose(ctx, platforms(root)) }

func choose(ctx context.Context, list []platform) (Attester, error) {
	var reasons []error
	for _, p := range list {
		a, err := p.open(ctx)
		if err == nil {
			return a, nil
		}
		if errors.Is(err, ErrUnsupported) {
			return nil, fmt.Errorf("choosing an attester: %s: %w", p.tee, err)
		}
		reasons = append(reasons, fmt.Errorf("%s: %w", p.tee, err))
	}
	return nil, fmt.Errorf("choosing an attester: none of the platforms is here: %w", errors.Join(reasons...))
}
