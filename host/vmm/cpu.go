package vmm

import (
	"fmt"
	"regexp"
	"strings"
)

// RootImageSerial is the serial of Config.RootImage.
const RootImageSerial = "guest-image"

var cpuFeature = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*=[A-Za-z0-9._-]+$`)

// CheckCPUFeatures says what is wrong with a list such as pmu=off,x2apic=on. Empty is none. The forms +NAME and -NAME are refused: QEMU
// applies them after all others, so that they could undo what a monitor needs.
func CheckCPUFeatures(list string) error {
	if list == "" {
		return nil
	}
	for f := range strings.SplitSeq(list, ",") {
		if !cpuFeature.MatchString(f) {
			return fmt.Errorf("%.60q, want NAME=VALUE,…, such as pmu=off", f)
		}
	}
	return nil
}
