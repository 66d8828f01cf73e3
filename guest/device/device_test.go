package device

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tree makes files below a directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func finder(t *testing.T) *Finder {
	root := tree(t, map[string]string{
		"sys/devices/pci0000:00/0000:00:02.0/virtio1/block/vda/dev":              "",
		"sys/devices/pci0000:00/0000:00:03.1/pci_bus/0000:05/x":                  "",
		"sys/devices/pci0000:00/0000:00:03.1/0000:05:1f.0/virtio2/block/vdb/dev": "",
		"sys/devices/pci0000:20/0000:20:00.0/pci_bus/0000:21/x":                  "",
		"sys/devices/pci0000:20/0000:20:00.0/0000:21:02.0/virtio3/block/vdc/dev": "",
		"sys/devices/pci0000:00/0000:00:04.0/virtio4/block/vdd/dev":              "",
		"sys/devices/pci0000:00/0000:00:04.0/virtio5/block/vde/dev":              "",
		"sys/devices/pci0000:00/0000:00:05.0/virtio6/block/odd..name/dev":        "",
		"sys/bus/scsi/devices/2:0:0:3/block/sda/dev":                             "",
		"sys/class/scsi_host/host2/scan":                                         "",
		"sys/class/block/vda/dev":                                                "254:0\n", "sys/class/block/vda/size": "2048\n", "dev/vda": "",
		"sys/class/block/vdb/dev": "254:16\n", "sys/class/block/vdb/size": "9223372036854775807\n", "dev/vdb": "",
		"sys/class/block/vdc/dev": "254:32\n", "sys/class/block/vdc/size": "8\n", "dev/vdc": "",
		"sys/class/block/sda/dev": "8:0\n", "sys/class/block/sda/size": "16\n", "dev/sda": "",
	})
	return &Finder{Sys: root + "/sys", Dev: root + "/dev", Timeout: 50 * time.Millisecond}
}

func TestFind(t *testing.T) {
	f := finder(t)
	for place, want := range map[string]Block{
		"blk 02": {"vda", 254, 0, 1 << 20}, "blk 02.0": {"vda", 254, 0, 1 << 20}, "blk /dev/vda": {"vda", 254, 0, 1 << 20},
		"mmioblk /dev/vdc": {"vdc", 254, 32, 4096}, "blk 20/00/02": {"vdc", 254, 32, 4096}, "scsi 0:3": {"sda", 8, 0, 8192},
	} {
		kind, at, _ := strings.Cut(place, " ")
		if got, err := f.Find(t.Context(), kind, at); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", place, got, err)
		}
	}
	for _, place := range []string{
		"blk ", "blk /", "blk ../02", "blk 02/../03", "blk 2/3/..", "blk 20", "blk 02.8", "blk 02.", "blk 0x2", "blk -1", "blk 002", "blk 02/01/00/01/02/03/04/05/06",
		"blk /dev/../etc/passwd", "blk /dev/mapper/control", "blk /dev/vda1", "blk /dev/vd", "blk /etc", "mmioblk 02", "scsi 0", "scsi 00:3", "scsi 0:-3",
		"scsi 256:0", "scsi 0:3:4", "scsi *:3", "nvdimm /dev/pmem0", "blk \x00", "blk " + strings.Repeat("01/", 1000),
	} {
		kind, at, _ := strings.Cut(place, " ")
		if got, err := f.Find(t.Context(), kind, at); !errors.Is(err, ErrLocator) {
			t.Errorf("%.40s: got %+v, %v", place, got, err)
		}
	}
	// Two disks on one device, a size that no disk has, a name that is none.
	for _, place := range []string{"04", "03.1/1f", "05"} {
		if got, err := f.Find(t.Context(), "blk", place); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: got %+v, %v", place, got, err)
		}
	}
	if scan, err := os.ReadFile(f.Sys + "/class/scsi_host/host2/scan"); err != nil || len(scan) > 0 {
		t.Errorf("a disk that is there was looked for: %q, %v", scan, err)
	}
}

// TestNeverComes waits for what is not there.
func TestNeverComes(t *testing.T) {
	f := finder(t)
	for _, place := range []string{"blk 1f", "blk 02/01", "mmioblk /dev/vdz", "scsi 0:4"} {
		kind, at, _ := strings.Cut(place, " ")
		if _, err := f.Find(t.Context(), kind, at); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", place, err)
		}
	}
	if scan, err := os.ReadFile(f.Sys + "/class/scsi_host/host2/scan"); err != nil || string(scan) != "0 0 4" {
		t.Errorf("scan: %q, %v", scan, err)
	}
}

func FuzzParsePCIPath(f *testing.F) {
	f.Add("02/01.0")
	f.Add("20/00/02")
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := ParsePCIPath(s); err == nil && strings.Trim(s, "0123456789abcdefABCDEF./") != "" || err == nil && strings.Contains(s, "..") {
			t.Errorf("%q was accepted", s)
		}
	})
}

func TestPartition(t *testing.T) {
	root := tree(t, map[string]string{
		"sys/class/block/vda/vda3/partition": "3", "sys/class/block/vda3/dev": "254:3", "sys/class/block/vda3/size": "16",
		"sys/class/block/vda4/dev": "254:4", "sys/class/block/vda4/size": "16", // of no disk
		"dev/vda3": "", "dev/vda4": "",
	})
	f := &Finder{Sys: root + "/sys", Dev: root + "/dev", Timeout: 30 * time.Millisecond}
	disk := Block{Name: "vda"}
	b, err := f.Partition(t.Context(), disk, 3)
	if err != nil || b.Name != "vda3" || b.Size != 8192 || b.Minor != 3 || f.Path(b) != root+"/dev/vda3" {
		t.Errorf("got %+v, %v", b, err)
	}
	for _, n := range []int{-1, 0, 129} {
		if _, err := f.Partition(t.Context(), disk, n); !errors.Is(err, ErrLocator) {
			t.Errorf("partition %d: %v", n, err)
		}
	}
	if _, err := f.Partition(t.Context(), disk, 4); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a partition of another disk: %v", err)
	}
}
