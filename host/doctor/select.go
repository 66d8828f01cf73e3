package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// emulated ends the reason why KVM is not used.
const emulated = "; software emulation is used"

// Accelerator answers how VMs can run here when want was asked for ("auto" or "" takes the best that works), without all other checks.
func Accelerator(ctx context.Context, h Host, want string) (string, error) {
	h.complete()
	r := &Report{}
	kvm, usable := h.kvm(ctx)
	r.Accel, r.AccelReason = "tcg", kvm.Detail+emulated
	if usable {
		r.Accel, r.AccelReason = "kvm", kvm.Detail
	}
	return r.SelectAccel(want)
}

// HardwareTEE answers which TEE hardware to use when want was asked for: one of snp, tdx, se, cca, or "auto" for whatever the host has.
// What is absent is an error; nothing weaker takes its place.
func HardwareTEE(h Host, want string) (string, error) {
	h.complete()
	var reasons []string
	for _, p := range h.platforms() {
		if want != "auto" && want != p.tee {
			continue
		}
		if p.check.Status == OK {
			return p.tee, nil
		}
		reasons = append(reasons, p.tee+": "+p.check.Detail)
	}
	if len(reasons) == 0 {
		return "", fmt.Errorf("TEE %q was asked for, expected one of auto, snp, tdx, se, cca", want)
	}
	slices.Sort(reasons)
	return "", fmt.Errorf("TEE %q was asked for, but this host has none: %s (hint: enable it in the firmware and the kernel, or set sandbox.tee to what "+
		"the host has; `cloister doctor` lists it)", want, strings.Join(reasons, "; "))
}
