package qemu

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/host/vmm"
)

var update = flag.Bool("update", false, "write the golden command lines anew")

// measured is the VM of `cloister run`. What it is started with is measured in part: a change of its golden files changes
// reference values.
func measured() vmm.Config {
	return vmm.Config{
		Name: "web", Dir: "/r/vm", Kernel: "/k", Initrd: "/i", Cmdline: "console=ttyS0, quiet", FirmwareCode: "/fw,code", FirmwareVars: "/v",
		VCPUs: 2, MemoryMiB: 512, Accel: vmm.AccelTCG, InitdataImage: make([]byte, 512), TPM: &vmm.TPM{CADir: "/ca"}, UserNetwork: true,
		ExtraDisks: []vmm.Disk{{Path: "/layer", ReadOnly: true, Serial: "layer-0"}},
	}
}

func sandboxed() vmm.Config {
	return vmm.Config{
		Name: "pod", Dir: "/r/vm", Kernel: "/k", Initrd: "/i", Cmdline: "console=ttyS0", VCPUs: 1, MemoryMiB: 256, Accel: vmm.AccelKVM,
		MaxVCPUs: 4, MaxMemoryMiB: 1100, NICs: []vmm.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01", MTU: 1450}, {ID: "eth1", MAC: "02:00:00:00:00:02"}},
		Share: &vmm.Share{Tag: "kataShared", Socket: "/r/fs.sock"}, Balloon: true,
		ExtraDisks: []vmm.Disk{{Path: "/dev/vg/data", Serial: "data", Discard: true}},
	}
}

func confidential(kind, program string) vmm.Config {
	c := measured()
	c.ExtraDisks, c.TPM, c.UserNetwork, c.Accel, c.Program = nil, nil, false, vmm.AccelKVM, program
	c.TEE = &vmm.TEE{Kind: kind, InitdataDigest: []byte("0123456789abcdef0123456789abcdef")}
	c.NICs = []vmm.NIC{{ID: "eth0", MAC: "02:00:00:00:00:01"}}
	return c
}

func TestGoldenArguments(t *testing.T) {
	files := bootFiles{vars: "/r/vm/vars.fd", initdata: "/r/vm/initdata.img", qmp: 3, console: 4, agent: 5, tpm: 6,
		sev: sevBits{51, 5}, isBlockDevice: map[string]bool{"/dev/vg/data": true}}
	small := files
	small.smallFirmware, small.tpm, small.share = "/usr/share/qemu/qboot.rom", 0, 6
	small.nics = []nicFiles{{taps: []int{7}, vhosts: []int{8}}, {taps: []int{9, 10}, vhosts: []int{11, 12}}}
	paused := files
	paused.paused, paused.nics = true, []nicFiles{{taps: []int{7}}}
	tests := map[string]struct {
		files bootFiles
		make  func() vmm.Config
	}{
		"measured-tcg": {files, measured},
		"measured-kvm": {files, func() vmm.Config { c := measured(); c.Accel = vmm.AccelKVM; return c }},
		"sandboxed":    {small, sandboxed},
		"microvm": {small, func() vmm.Config {
			c := sandboxed()
			c.Machine, c.MaxVCPUs, c.MaxMemoryMiB = vmm.MachineMicroVM, 0, 0
			return c
		}},
		"vsock": {func() bootFiles {
			f := small
			f.vsock, f.cid, f.paused = 5, 77, true
			return f
		}(), func() vmm.Config {
			c := sandboxed()
			c.Vsock, c.Accel = true, vmm.AccelTCG
			return c
		}},
		"hugepages": {small, func() vmm.Config { c := sandboxed(); c.Hugepages, c.CPUFeatures = true, "pmu=off"; return c }},
		"image": {small, func() vmm.Config {
			c := sandboxed()
			c.Initrd, c.RootImage, c.Share, c.Accel, c.CPUFeatures = "", "/kata.img", nil, vmm.AccelTCG, "la57=on,pmu=off"
			return c
		}},
		"image-tdx": {paused, func() vmm.Config {
			c := confidential("tdx", "qemu-system-x86_64")
			c.Initrd, c.RootImage, c.Hugepages, c.CPUFeatures = "", "/kata.img", true, "avx512f=off"
			return c
		}},
		"snp": {paused, func() vmm.Config { return confidential("snp", "/opt/qemu-system-x86_64-snp") }},
		"snp-identity": {paused, func() vmm.Config {
			c := confidential("snp", "qemu-system-x86_64")
			c.TEE.SNPPolicy, c.TEE.SNPIDBlock, c.TEE.SNPIDAuth, c.TEE.InitdataDigest = 0x30001, "YmxvY2s=", "YXV0aA==", make([]byte, 64)
			return c
		}},
		"tdx": {paused, func() vmm.Config { return confidential("tdx", "qemu-system-x86_64") }},
		"tdx-socket": {func() bootFiles { f := paused; f.quoteSocket = true; return f }(), func() vmm.Config {
			return confidential("tdx", "qemu-system-x86_64")
		}},
		"tdx-port": {paused, func() vmm.Config {
			c := confidential("tdx", "qemu-system-x86_64")
			c.TEE.TDXQuoteVsockPort = 4051
			return c
		}},
		"se": {paused, func() vmm.Config {
			c := confidential("se", "qemu-system-s390x")
			c.FirmwareCode, c.FirmwareVars, c.Initrd, c.Cmdline = "", "", "", ""
			return c
		}},
		"cca": {paused, func() vmm.Config { return confidential("cca", "qemu-system-aarch64") }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := tt.make()
			// Only what depends on open files is not checked here.
			valid := c
			valid.NICs = nil
			if err := errors.Join(valid.Validate(), check(&valid)); err != nil {
				t.Fatal(err)
			}
			args, err := qemuArgs(&c, &tt.files)
			if err != nil {
				t.Fatal(err)
			}
			got, golden := strings.Join(args, "\n")+"\n", filepath.Join("testdata", name+".args")
			if *update && !strings.HasPrefix(name, "measured") {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("arguments are\n%s\nexpected\n%s", got, want)
			}
		})
	}
}

func TestRefusedConfigurations(t *testing.T) {
	tests := []struct {
		name string
		make func() vmm.Config
		want string
	}{
		{"TEE without KVM", func() vmm.Config { c := confidential("snp", "qemu-system-x86_64"); c.Accel = vmm.AccelTCG; return c }, "needs KVM"},
		{"TEE of another architecture", func() vmm.Config { return confidential("se", "qemu-system-x86_64") }, "needs qemu-system-s390x"},
		{"TEE nobody knows", func() vmm.Config { return confidential("sgx", "qemu-system-x86_64") }, `"sgx"`},
		{"TEE on microvm", func() vmm.Config {
			c := confidential("tdx", "qemu-system-x86_64")
			c.Machine = vmm.MachineMicroVM
			return c
		}, "microvm"},
		{"TEE without firmware", func() vmm.Config { c := confidential("tdx", "qemu-system-x86_64"); c.FirmwareCode = ""; return c }, "firmware"},
		{"half an identity", func() vmm.Config {
			c := confidential("snp", "qemu-system-x86_64")
			c.TEE.SNPIDBlock = "YQ=="
			return c
		}, "both needed"},
		{"microvm with firmware", func() vmm.Config { c := measured(); c.Machine = vmm.MachineMicroVM; return c }, "no firmware"},
		{"microvm with room", func() vmm.Config { c := sandboxed(); c.Machine = vmm.MachineMicroVM; return c }, "no hot plug"},
		{"serial twice", func() vmm.Config { c := measured(); c.ExtraDisks = append(c.ExtraDisks, c.ExtraDisks[0]); return c }, "twice"},
		{"a tag with an option in it", func() vmm.Config { c := sandboxed(); c.Share.Tag = "a,b=c"; return c }, "tag"},
		{"a card without queues", sandboxed, "0 queues"},
		{"an address of many", func() vmm.Config { c := sandboxed(); c.NICs[0].MAC = "01:00:5e:00:00:01"; return c }, "hardware address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.make()
			c.Dir = filepath.Join(t.TempDir(), "vm")
			if c.Program == "" {
				c.Program = "qemu-system-x86_64"
			}
			_, err := Start(testContext(t), c)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, expected a word about %q", err, tt.want)
			}
			if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a directory was made: %v", err)
			}
		})
	}
}
