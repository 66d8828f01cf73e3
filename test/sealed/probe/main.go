// Command probe is an init that opens a sealed layer on the first disk with the guest's own code and prints a file of it. The kernel command
// line has root=HASH offset=BYTES key=HEX, as sealed.root and so on.
package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/crypt"
	"github.com/cloister/cloister/guest/device"
	"github.com/cloister/cloister/guest/kmod"
	"github.com/cloister/cloister/layer/sealed"
)

func main() {
	for _, kind := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		_ = os.MkdirAll(kind[1], 0o755)
		if err := unix.Mount(kind[0], kind[1], kind[0], 0, ""); err != nil {
			fmt.Println("probe:", err)
		}
	}
	words := map[string]string{}
	text, _ := os.ReadFile("/proc/cmdline")
	for _, w := range strings.Fields(string(text)) {
		if key, value, ok := strings.Cut(w, "="); ok {
			words[key] = value
		}
	}
	modules, err := loader()
	if err == nil {
		for _, key := range strings.Split(words["sealed.keys"], ",") {
			fmt.Printf("probe: %.8s: %s\n", key, attempt(modules, words, key))
		}
	}
	fmt.Println("probe: end", err)
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func loader() (*kmod.Loader, error) {
	release, err := kmod.Release()
	if err != nil {
		return nil, err
	}
	m, err := kmod.Open("/lib/modules/"+release, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return m, m.Load(append(append(crypt.VerityModules(), crypt.SealedModules()...), "virtio_pci", "virtio_blk", "erofs")...)
}

// attempt opens the layer with a key and says what came of it.
func attempt(modules *kmod.Loader, words map[string]string, keyText string) string {
	out, err := open(modules, words, keyText)
	if err != nil {
		return "error: " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	return out
}

func open(modules *kmod.Loader, words map[string]string, keyText string) (out string, err error) {
	offset, err := strconv.ParseInt(words["sealed.offset"], 10, 64)
	if err != nil {
		return "", err
	}
	key, err := hex.DecodeString(keyText)
	if err != nil {
		return "", err
	}
	f := &device.Finder{Sys: "/sys", Dev: "/dev", Timeout: time.Minute, Load: modules.Load}
	disk, err := f.Find(context.Background(), "blk", "/dev/vda")
	if err != nil {
		return "", err
	}
	d, err := crypt.OpenVerity("layer", f.Path(disk), disk.Size, crypt.Verity{Root: words["sealed.root"], HashOffset: offset, BlockSize: 4096, HashSize: 4096})
	if err != nil {
		return "", err
	}
	defer func() {
		if cerr := d.Close(); err == nil {
			err = cerr
		}
		if _, serr := os.Stat("/sys/block/dm-0"); err == nil && serr == nil {
			out += ", and a device is left"
		}
	}()
	layerKey, err := sealed.LayerKey(key, d.Salt)
	if err != nil {
		return "", err
	}
	if err := d.Decrypt("layer-plain", layerKey); err != nil {
		return "", err
	}
	if err := os.MkdirAll("/layer", 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount(d.Node, "/layer", "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return "", fmt.Errorf("mounting: %w", err)
	}
	defer func() { _ = unix.Unmount("/layer", 0) }()
	text, err := os.ReadFile("/layer/file")
	if err != nil {
		return "", err
	}
	large, err := os.ReadFile("/layer/large")
	return fmt.Sprintf("%q, %d bytes, %v", text, len(large), err), nil
}
