package attest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

// platform is one entry of the list of attesters.
type platform struct {
	tee string
	// open returns the attester, or why this machine does not have it.
	open func(ctx context.Context) (Attester, error)
}

// platforms is the whole story of what can attest, in order of preference.
// Platforms that this build recognises and cannot attest are listed too, so
// that the error says so instead of trying something weaker.
func platforms() []platform {
	return []platform{
		{"tdx", recognised("/dev/tdx_guest", "/sys/devices/virtual/misc/tdx_guest")},
		{"snp", recognised("/dev/sev-guest", "/sys/devices/platform/sev-guest")},
		{"csv", recognised("/dev/csv-guest")},
		{"se", recognised("/dev/uv")},
		{"tpm", func(ctx context.Context) (Attester, error) { return NewTPM(ctx, "") }},
	}
}

// errUnsupported marks a platform that is there and cannot be attested.
var errUnsupported = errors.New("it is present, and this build has no attester for it")

func recognised(paths ...string) func(context.Context) (Attester, error) {
	return func(context.Context) (Attester, error) {
		for _, p := range paths {
			if _, err := os.Stat(p); err == nil {
				return nil, fmt.Errorf("%s: %w", p, errUnsupported)
			}
		}
		return nil, fmt.Errorf("no %s", strings.Join(paths, " or "))
	}
}

// Detect opens the attester of the platform the guest runs on. Without one it
// returns an error that names every platform with the reason it was passed over.
func Detect(ctx context.Context) (Attester, error) { return choose(ctx, platforms()) }

func choose(ctx context.Context, list []platform) (Attester, error) {
	var reasons []error
	for _, p := range list {
		a, err := p.open(ctx)
		if err == nil {
			return a, nil
		}
		if errors.Is(err, errUnsupported) {
			return nil, fmt.Errorf("choosing an attester: %s: %w", p.tee, err)
		}
		reasons = append(reasons, fmt.Errorf("%s: %w", p.tee, err))
	}
	return nil, fmt.Errorf("choosing an attester: none of the platforms is here: %w", errors.Join(reasons...))
}
