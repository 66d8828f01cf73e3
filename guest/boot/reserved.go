package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// reservedDevices returns a test for character devices that speak in the guest's name: TPMs, TEE reports, the channel
// to the host and the device mapper. No container gets them. sys is normally /sys.
func reservedDevices(sys string) func(major, minor int64) bool {
	patterns := []string{"class/tpm/*/dev", "class/tpmrm/*/dev", "class/virtio-ports/*/dev"}
	for _, misc := range []string{"device-mapper", "sev-guest", "tdx_guest", "vsock", "nvram", "snapshot"} {
		patterns = append(patterns, "class/misc/"+misc+"/dev")
	}
	return func(major, minor int64) bool {
		want := fmt.Sprintf("%d:%d", major, minor)
		for _, p := range patterns {
			files, err := filepath.Glob(filepath.Join(sys, p))
			if err != nil {
				continue
			}
			for _, f := range files {
				if got, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(got)) == want {
					return true
				}
			}
		}
		return false
	}
}
