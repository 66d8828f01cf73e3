package qemu

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/cpuid/v2"

	"github.com/cloister/cloister/host/vmm"
)

// Kinds of hardware protection.
const (
	kindSNP = "snp"
	kindTDX = "tdx"
	kindSE  = "se"
	kindCCA = "cca"
)

// quoteSocket is where Intel's quote generation service listens, quotePort its vsock port on the host.
const (
	quoteSocket = "/var/run/tdx-qgs/qgs.socket"
	quotePort   = 4050
)

// defaultSNPPolicy allows SMT and has the bit that must be one (SNP firmware ABI, section 4.3).
const defaultSNPPolicy = 0x30000

// teeInfo is what differs between the kinds.
var teeInfo = map[string]struct {
	program string // start of the program's name: an emulator of another architecture cannot protect anything
	object  string // id of the object that protects
	digest  int    // bytes of the field for the initdata digest
}{
	kindSNP: {"qemu-system-x86_64", "snp", 32},
	kindTDX: {"qemu-system-x86_64", "tdx", 48},
	kindSE:  {"qemu-system-s390x", "pv0", 0},
	kindCCA: {"qemu-system-aarch64", "rme0", 64},
}

// defaultProgram is the name of the program to look for.
func defaultProgram(c *vmm.Config) string {
	if c.TEE != nil {
		if t, ok := teeInfo[c.TEE.Kind]; ok {
			return t.program
		}
	}
	return "qemu-system-x86_64"
}

// checkTEE reports what would leave a VM that was asked to be protected without protection, or broken.
func checkTEE(c *vmm.Config) error {
	t := c.TEE
	if t == nil {
		return nil
	}
	info, ok := teeInfo[t.Kind]
	if !ok {
		return fmt.Errorf("hardware protection %q: expected snp, tdx, se or cca", t.Kind)
	}
	var errs []error
	if c.Accel != vmm.AccelKVM {
		errs = append(errs, fmt.Errorf("hardware protection %s needs KVM, the accelerator is %s", t.Kind, c.Accel))
	}
	if !strings.HasPrefix(filepath.Base(c.Program), info.program) {
		errs = append(errs, fmt.Errorf("hardware protection %s needs %s, the program is %s", t.Kind, info.program, c.Program))
	}
	if c.Machine == vmm.MachineMicroVM {
		errs = append(errs, fmt.Errorf("hardware protection %s does not work with machine type %s", t.Kind, c.Machine))
	}
	if t.Kind == kindSE {
		if c.FirmwareCode != "" || c.Initrd != "" {
			errs = append(errs, errors.New("a Secure Execution image has its own initrd, and starts without firmware"))
		}
	} else if c.FirmwareCode == "" {
		errs = append(errs, fmt.Errorf("hardware protection %s needs firmware made for it", t.Kind))
	}
	if (t.SNPIDBlock == "") != (t.SNPIDAuth == "") {
		errs = append(errs, errors.New("the SNP identity block and its authentication are both needed, or neither"))
	}
	for _, s := range []string{t.SNPIDBlock, t.SNPIDAuth} {
		if _, err := base64.StdEncoding.DecodeString(s); err != nil {
			errs = append(errs, fmt.Errorf("SNP identity block: %w", err))
		}
	}
	if t.TDXQuoteVsockPort < 0 || t.TDXQuoteVsockPort > 1<<32-1 {
		errs = append(errs, fmt.Errorf("port %d of the quote service: expected 0 to 4294967295", t.TDXQuoteVsockPort))
	}
	return errors.Join(errs...)
}

func teeCPU(kind string) string {
	switch kind {
	case kindSNP:
		// The measurement of an SNP guest has the processor's model in it, which must not depend on the host.
		return "EPYC-v4,pmu=off"
	case kindTDX:
		return "host,pmu=off"
	}
	return "host"
}

func teeMachine(kind string) string {
	object := ",confidential-guest-support=" + teeInfo[kind].object
	switch kind {
	case kindSE:
		return "s390-ccw-virtio,dump-guest-core=off" + object
	case kindCCA:
		return "virt,usb=off,gic-version=host,dump-guest-core=off" + object
	}
	// The hypervisor cannot emulate interrupt controllers inside a protected guest: the split keeps those outside it in QEMU.
	return "q35,smm=off,vmport=off,usb=off,sata=off,graphics=off,dump-guest-core=off,kernel_irqchip=split" + object
}

// sevBits says how this host's memory encryption marks a page (CPUID 0x8000001F, EBX).
type sevBits struct{ cbit, reduced uint32 }

func hostSEVBits() (sevBits, error) {
	m := cpuid.CPU.AMDMemEncryption
	if !m.Available || m.CBitPossition == 0 {
		return sevBits{}, errors.New("this processor has no AMD memory encryption")
	}
	return sevBits{m.CBitPossition, m.PhysAddrReduction}, nil
}

// tee adds the object that protects the guest.
func (a *argList) tee() error {
	t := a.c.TEE
	if t == nil {
		return nil
	}
	info := teeInfo[t.Kind]
	type object = map[string]any
	o := object{"id": info.object}
	digest := fitDigest(t.InitdataDigest, info.digest)
	switch t.Kind {
	case kindSNP:
		policy := t.SNPPolicy
		if policy == 0 {
			policy = defaultSNPPolicy
		}
		o["qom-type"], o["policy"] = "sev-snp-guest", policy
		o["cbitpos"], o["reduced-phys-bits"] = a.f.sev.cbit, a.f.sev.reduced
		o["kernel-hashes"] = a.c.Kernel != ""
		setText(o, "host-data", digest)
		setText(o, "id-block", t.SNPIDBlock)
		setText(o, "id-auth", t.SNPIDAuth)
	case kindTDX:
		o["qom-type"], o["sept-ve-disable"] = "tdx-guest", true
		setText(o, "mrconfigid", digest)
		switch {
		case t.TDXQuoteVsockPort == 0 && a.f.quoteSocket:
			o["quote-generation-socket"] = object{"type": "unix", "path": quoteSocket}
		case t.TDXQuoteVsockPort == 0:
			o["quote-generation-socket"] = object{"type": "vsock", "cid": "2", "port": strconv.Itoa(quotePort)}
		default:
			o["quote-generation-socket"] = object{"type": "vsock", "cid": "2", "port": strconv.Itoa(t.TDXQuoteVsockPort)}
		}
	case kindSE:
		o["qom-type"] = "s390-pv-guest"
	case kindCCA:
		o["qom-type"], o["measurement-algorithm"] = "rme-guest", "sha512"
		setText(o, "personalization-value", digest)
	default:
		return fmt.Errorf("hardware protection %q is not known", t.Kind)
	}
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	a.add("-object", string(b))
	return nil
}

func setText(o map[string]any, key, value string) {
	if value != "" {
		o[key] = value
	}
}

// fitDigest cuts a digest, or fills it with zeros on the right, to the size of the field that the hardware signs.
func fitDigest(digest []byte, size int) string {
	if len(digest) == 0 || size == 0 {
		return ""
	}
	field := make([]byte, size)
	copy(field, digest)
	return base64.StdEncoding.EncodeToString(field)
}

// confirmTEE asks QEMU, before the guest runs, whether the machine really has its protection.
func (v *VM) confirmTEE(ctx context.Context, kind string) error {
	var path string
	err := v.qmp.run(ctx, "qom-get", map[string]string{"path": "/machine", "property": "confidential-guest-support"}, &path)
	if err != nil {
		return v.explainStart(err)
	}
	if want := "/objects/" + teeInfo[kind].object; path != want {
		return fmt.Errorf("the virtual machine is not protected by %s: its protection is %q, expected %q", kind, path, want)
	}
	return nil
}
