package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/cloister/cloister/host/runtimeconfig"
)

// imageWords start a guest whose root file system is a disk: systemd with the agent, and no network configuration but the agent's
// (runtime-shim.md section 13).
const imageWords = "console=ttyS0 reboot=k panic=1 systemd.unit=kata-containers.target systemd.mask=systemd-networkd.service " +
	"systemd.mask=systemd-networkd.socket selinux=0"

// imageCmdline is the kernel command line for a guest image that is the first disk.
func imageCmdline(g *runtimeconfig.Guest) (string, error) {
	f, err := os.Open(g.Image)
	if err != nil {
		return "", fmt.Errorf("guest image: %w", err)
	}
	defer f.Close()
	kind, err := rootType(f)
	if err != nil {
		return "", fmt.Errorf("guest image %s: %w (hint: want a disk with partitions, the first with ext4, xfs or erofs)", g.Image, err)
	}
	flags := "ro"
	if kind == "ext4" {
		flags = "data=ordered,errors=remount-ro"
	}
	root := "root=/dev/vda1"
	if g.VerityParams != "" {
		v, err := runtimeconfig.ParseVerity(g.VerityParams)
		if err != nil {
			return "", fmt.Errorf("guest.verity_params: %w", err)
		}
		// The kernel makes the device itself before it looks for its root (CONFIG_DM_INIT).
		root = fmt.Sprintf(`dm-mod.create="dm-verity,,,ro,0 %d verity 1 /dev/vda1 /dev/vda2 %d %d %d 0 sha256 %s %s" root=/dev/dm-0`,
			v.Sectors(), v.DataBlockSize, v.HashBlockSize, v.DataBlocks, v.RootHash, v.Salt)
	}
	return fmt.Sprintf("%s %s rootflags=%s ro rootfstype=%s", imageWords, root, flags, kind), nil
}

// rootType is the type of the file system in the first partition of a disk with an MBR.
func rootType(disk io.ReaderAt) (string, error) {
	const sector = 512
	at := func(offset int64, n int) ([]byte, error) {
		b := make([]byte, n)
		_, err := disk.ReadAt(b, offset)
		return b, err
	}
	mbr, err := at(0, sector)
	if err != nil {
		return "", fmt.Errorf("reading its partition table: %w", err)
	}
	start := int64(binary.LittleEndian.Uint32(mbr[446+8:])) * sector
	if mbr[510] != 0x55 || mbr[511] != 0xaa || mbr[446+4] == 0 || mbr[446+4] == 0xee || start == 0 {
		return "", errors.New("it has no MBR with a first partition")
	}
	head, err := at(start, 2048)
	if err != nil {
		return "", fmt.Errorf("reading its first partition: %w", err)
	}
	switch {
	case binary.LittleEndian.Uint16(head[1024+56:]) == 0xef53:
		return "ext4", nil
	case binary.LittleEndian.Uint32(head[1024:]) == 0xe0f5e1e2:
		return "erofs", nil
	case string(head[:4]) == "XFSB":
		return "xfs", nil
	}
	return "", errors.New("its first partition has none of the file systems ext4, xfs and erofs")
}

// agentWords are the words of the kernel command line that the guest's agent reads, as far as they differ from its defaults: without need
// they would change what is measured.
func agentWords(c *runtimeconfig.Config) string {
	d := runtimeconfig.Default()
	var words []string
	seconds := func(name string, have, usual time.Duration) {
		if have != usual {
			words = append(words, fmt.Sprintf("%s=%d", name, int64(math.Ceil(have.Seconds()))))
		}
	}
	seconds("agent.cdh_api_timeout", c.Timeouts.Hub, d.Timeouts.Hub)
	seconds("agent.launch_process_timeout", c.Timeouts.GuestProcess, d.Timeouts.GuestProcess)
	if c.Logging.GuestLevel != d.Logging.GuestLevel {
		words = append(words, "agent.log="+c.Logging.GuestLevel)
	}
	return strings.Join(words, " ")
}
