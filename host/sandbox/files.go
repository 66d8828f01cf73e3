package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloister/cloister/host/runtimeconfig"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/wire/guestimage"
)

// GuestFiles are what boots.
type GuestFiles struct {
	Kernel, Initrd, Firmware, FirmwareVars string // paths; empty where there is none
	Cmdline                                string // of the kernel, with what the configuration adds
}

// ImageDirs are where a guest image is looked for when the configuration names no files, in this order. The last is the user's own:
// containerd as a service has no home directory, and does not see it.
func ImageDirs() []string {
	dirs := []string{"/etc/cloister/guest", "/usr/share/cloister/guest", "/opt/cloister/guest"}
	if d, err := paths.Default(); err == nil {
		dirs = append(dirs, d.CurrentImage())
	}
	return dirs
}

// Files finds the guest: the configuration's files, or those of the image.
func Files(c *runtimeconfig.Config) (GuestFiles, error) {
	f, err := findFiles(&c.Guest, c.Sandbox.TEE == runtimeconfig.TEENone)
	if err != nil {
		return GuestFiles{}, err
	}
	if c.Guest.Image != "" {
		if f.Cmdline, err = imageCmdline(&c.Guest); err != nil {
			return GuestFiles{}, err
		}
	}
	f.Cmdline = words(f.Cmdline, c.Guest.KernelParams, agentWords(c))
	return f, nil
}

// findFiles prefers the initrd that is not compressed where nothing is measured: unpacking takes longer than reading.
func findFiles(g *runtimeconfig.Guest, sandboxed bool) (GuestFiles, error) {
	f := GuestFiles{Kernel: g.Kernel, Initrd: g.Initrd, Firmware: g.Firmware, FirmwareVars: g.FirmwareVars}
	if f.Kernel != "" {
		// A kernel that lies in an image comes with its command line and its firmware.
		if m, err := guestimage.Load(filepath.Dir(f.Kernel)); err == nil {
			f.take(m)
		}
		return f, nil
	}
	for _, dir := range ImageDirs() {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(real, guestimage.ManifestName)); err != nil {
			continue
		}
		m, err := guestimage.Load(real)
		if err != nil {
			return GuestFiles{}, err
		}
		f.Kernel = guestimage.Path(real, m.Kernel.Path)
		if f.Initrd == "" && g.Image == "" {
			f.Initrd = guestimage.Path(real, m.Initrd.Path)
			if sandboxed && m.Plain != nil {
				f.Initrd = guestimage.Path(real, m.Plain.Path)
			}
		}
		f.take(m)
		return f, nil
	}
	return GuestFiles{}, fmt.Errorf("there is no guest image in %s (hint: `cloister guest build --to /usr/share/cloister/guest` in the "+
		"source tree makes one; or name guest.kernel and guest.initrd in the runtime's configuration)", strings.Join(ImageDirs(), ", "))
}

// take completes the files by those of an image.
func (f *GuestFiles) take(m *guestimage.Manifest) {
	f.Cmdline = m.Cmdline
	if f.Firmware == "" {
		f.Firmware, f.FirmwareVars = m.Firmware.CodePath, m.Firmware.VarsPath
	}
}
