package refvalue

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloister/cloister/internal/needs"
)

// fakeKernel is a PE image with an x86 boot header, two sections out of order,
// data behind them, and a certificate.
func fakeKernel() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x800)
	for i := range b {
		b[i] = byte(i * 7)
	}
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	const pe, opt = 0x40, 0x58
	copy(b[pe:], "PE\x00\x00")
	le.PutUint16(b[pe+6:], 2)
	le.PutUint16(b[pe+20:], 160)
	clear(b[opt : opt+160+80])
	le.PutUint16(b[opt:], 0x20b)
	le.PutUint32(b[opt+60:], 0x200) // headers
	le.PutUint32(b[opt+108:], 6)    // data directories
	le.PutUint32(b[opt+112+32:], 0x780)
	le.PutUint32(b[opt+112+36:], 0x80)
	sec := opt + 160
	le.PutUint32(b[sec+16:], 0x100)
	le.PutUint32(b[sec+20:], 0x400)
	le.PutUint32(b[sec+40+16:], 0x200)
	le.PutUint32(b[sec+40+20:], 0x200)
	copy(b[bzMagic:], "HdrS")
	le.PutUint16(b[bzVersion:], 0x20f)
	b[bzFlags] = 1
	le.PutUint16(b[bzXLoadFlags:], 3)
	return b
}

func TestAuthenticode(t *testing.T) {
	img := fakeKernel()
	got, err := Authenticode(img)
	if err != nil {
		t.Fatal(err)
	}
	// By hand: headers without checksum and certificate entry, the sections
	// by their place in the file, what is behind them, no certificate.
	const opt = 0x58
	cert := opt + 112 + 32
	want := sha256.Sum256(slices.Concat(img[:opt+64], img[opt+68:cert], img[cert+8:0x200], img[0x200:0x400], img[0x400:0x500], img[0x500:0x780]))
	if got != want {
		t.Errorf("got %x, want %x", got, want)
	}
	for name, at := range map[string]int{"checksum": opt + 64, "certificate entry": cert, "certificate": 0x790} {
		other := bytes.Clone(img)
		other[at] ^= 1
		if sum, err := Authenticode(other); err != nil || sum != want {
			t.Errorf("changing the %s changes the digest (%v)", name, err)
		}
	}
	for name, at := range map[string]int{"header": 0x1f0, "section": 0x300, "data behind": 0x700} {
		other := bytes.Clone(img)
		other[at] ^= 1
		if sum, err := Authenticode(other); err != nil || sum == want {
			t.Errorf("changing the %s does not change the digest (%v)", name, err)
		}
	}
}

func TestAuthenticodeRefuses(t *testing.T) {
	le := binary.LittleEndian
	for name, change := range map[string]func([]byte) []byte{
		"empty":                func([]byte) []byte { return nil },
		"no MZ":                func(b []byte) []byte { b[0] = 0; return b },
		"PE header outside":    func(b []byte) []byte { le.PutUint32(b[0x3c:], 0xfffffff0); return b },
		"section outside":      func(b []byte) []byte { le.PutUint32(b[0x58+160+20:], 0xfffffff0); return b },
		"headers outside":      func(b []byte) []byte { le.PutUint32(b[0x58+60:], 0xffffffff); return b },
		"certificate too long": func(b []byte) []byte { le.PutUint32(b[0x58+112+36:], 0x7fffffff); return b },
		"cut off":              func(b []byte) []byte { return b[:0x100] },
		"odd magic":            func(b []byte) []byte { le.PutUint16(b[0x58:], 0x107); return b },
	} {
		if _, err := Authenticode(change(fakeKernel())); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestQEMUHeader(t *testing.T) {
	k := fakeKernel()
	out, err := qemuHeader(k, 5000, Machine{VCPUs: 1, MemoryMiB: 512})
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	// 512 MiB less 160 KiB less the initrd, down to a page.
	if at, size := le.Uint32(out[bzInitrd:]), le.Uint32(out[bzInitrdSize:]); at != 0x1ffd6000 || size != 5000 {
		t.Errorf("initrd at %#x, %d bytes", at, size)
	}
	if out[bzLoader] != 0xb0 || out[bzFlags] != 0x81 || le.Uint32(out[bzCmdline:]) != 0x20000 || le.Uint16(out[bzHeapEnd:]) != 0xfe00 {
		t.Error("header fields are not as QEMU sets them")
	}
	if !bytes.Equal(k, fakeKernel()) {
		t.Error("the kernel itself was changed")
	}
	big := Machine{VCPUs: 1, MemoryMiB: 4096}
	same := Machine{VCPUs: 1, MemoryMiB: 8192}
	a, err := qemuHeader(k, 5000, big)
	if err != nil {
		t.Fatal(err)
	}
	b, err := qemuHeader(k, 5000, same)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("memory above 4 GiB matters (%v)", err)
	}
	if _, err := qemuHeader(k, 600<<20, Machine{VCPUs: 1, MemoryMiB: 512}); err == nil {
		t.Error("an initrd larger than memory was accepted")
	}
	if _, err := qemuHeader(bytes.Repeat([]byte{0}, 0x1000), 1, big); err == nil {
		t.Error("a file that is no kernel was accepted")
	}
}

func TestKnownRegisters(t *testing.T) {
	// Known from booted machines.
	for name, c := range map[string]struct {
		events []Event
		want   string
	}{
		"no secure boot keys": {secureBootEvents(), "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068"},
		"separator only":      {[]Event{separator(2)}, "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"},
	} {
		if got := extend(c.events); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	line := "console=ttyS0 quiet panic=-1 cloister.initdata=required"
	if got := stubEvents(line, "i", []byte("x"))[0].Digest; got != "c49051085bb5b3482e6029741581b8f359f891624bb9ff58c507bde5adc57659" {
		t.Errorf("command line: %s", got)
	}
	if n := len(stubEvents(line, "", nil)); n != 1 {
		t.Errorf("without an initrd there are %d events", n)
	}
}

const (
	debianCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	debianVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

func firmware(t testing.TB) []byte {
	t.Helper()
	code, err := os.ReadFile(debianCode)
	if err != nil {
		needs.Missing(t, "OVMF (package ovmf): %v", err)
	}
	return code
}

// TestPEIVolume compares with what booted machines measured, for the release
// that was booted.
func TestPEIVolume(t *testing.T) {
	code := firmware(t)
	sum := sha256.Sum256(code)
	if hex.EncodeToString(sum[:]) != "b157d97b1f69729514feb7f201d2cbe4957f23ab77920e361fe9f822ba49ca4c" {
		needs.Optional(t, "another OVMF release than the one with known measurements")
	}
	fvs, err := unpackOVMF(code)
	if err != nil {
		t.Fatal(err)
	}
	if got := sha256.Sum256(fvs.dxe); hex.EncodeToString(got[:]) != "82a0445201cb49945461acc6ed78426700fb7e92819862edc55ba3ad4559b135" {
		t.Errorf("DXE volume: %x", got)
	}
	for _, c := range []struct {
		m    Machine
		want string
	}{
		{Machine{VCPUs: 1, MemoryMiB: 1024, S3: true}, "4c251b0c52a393c1"},
		{Machine{VCPUs: 2, MemoryMiB: 1024, S3: true}, "1b5f687967cdecbf"},
		{Machine{VCPUs: 1, MemoryMiB: 256, S3: true}, "a87d62757d139619"},
		{Machine{VCPUs: 1, MemoryMiB: 512, S3: true}, "f4f0c52697278027"},
		{Machine{VCPUs: 2, MemoryMiB: 2048, S3: true}, "76bbfa881e8b9956"},
		{Machine{VCPUs: 2, MemoryMiB: 3072, S3: true}, "76bbfa881e8b9956"},
		{Machine{VCPUs: 4, MemoryMiB: 4096, S3: true}, "209a142d6b9fdfac"},
		{Machine{VCPUs: 2, MemoryMiB: 1024}, "86dbd0066d252011"},
		{Machine{VCPUs: 2, MaxVCPUs: 4, MemoryMiB: 6144}, "6733984f419fbb79"},
		{Machine{VCPUs: 4, MemoryMiB: 2048}, "497adb5d0e6c5243"},
		{Machine{VCPUs: 2, MemoryMiB: 6144, AddressBits: untrustedAddressBits}, "a0b4f9100dd9c78a"},
	} {
		fv, err := runInPlace(fvs.pei, c.m)
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(fv); !strings.HasPrefix(hex.EncodeToString(got[:]), c.want) {
			t.Errorf("%+v: %x, want %s", c.m, got, c.want)
		}
	}
}

func TestCompute(t *testing.T) {
	firmware(t)
	dir := t.TempDir()
	kernel, initrd := filepath.Join(dir, "k"), filepath.Join(dir, "i")
	for f, data := range map[string][]byte{kernel: fakeKernel(), initrd: []byte("initrd")} {
		if err := os.WriteFile(f, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	good := Input{
		Kernel: kernel, Initrd: initrd, Cmdline: "quiet", FirmwareCode: debianCode, FirmwareVars: debianVars,
		Machines: []Machine{{VCPUs: 1, MemoryMiB: 512}, {VCPUs: 2, MemoryMiB: 512}},
		Initdata: []byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"a\" = \"b\"\n"),
	}
	res, err := Compute(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]int{"tpm_pcr00": 2, "tpm_pcr04": 2, "tpm_pcr07": 1, "tpm_pcr09": 1, "tpm_init_data": 1} {
		if len(res.Values[name]) != n {
			t.Errorf("%s has %d values, want %d", name, len(res.Values[name]), n)
		}
	}
	for name, change := range map[string]func(*Input){
		"tpm_pcr09":     func(in *Input) { in.Cmdline += " x" },
		"tpm_init_data": func(in *Input) { in.Initdata = append(slices.Clone(in.Initdata), "# x\n"...) },
	} {
		in := good
		change(&in)
		other, err := Compute(in)
		if err != nil {
			t.Fatal(err)
		}
		for v, list := range other.Values {
			if slices.Equal(list, res.Values[v]) == (v == name) {
				t.Errorf("changing what %s measures: %s is equal: %v", name, v, v == name)
			}
		}
	}

	for name, c := range map[string]struct {
		change func(*Input)
		want   string
	}{
		"no machine":        {func(in *Input) { in.Machines = nil }, "no machine"},
		"no CPU":            {func(in *Input) { in.Machines = []Machine{{MemoryMiB: 512}} }, "0 vCPUs"},
		"too much memory":   {func(in *Input) { in.Machines = []Machine{{VCPUs: 1, MemoryMiB: 1 << 20}} }, "1048576 MiB"},
		"line feed":         {func(in *Input) { in.Cmdline = "a\nb" }, "byte 0xa"},
		"video mode":        {func(in *Input) { in.Cmdline = "vga=ask" }, "vga="},
		"long command line": {func(in *Input) { in.Cmdline = strings.Repeat("x", 2048) }, "2048 bytes"},
		"no kernel":         {func(in *Input) { in.Kernel = initrd }, "not an x86 kernel"},
		"no firmware":       {func(in *Input) { in.FirmwareCode = kernel }, "firmware volume"},
		"vars as code":      {func(in *Input) { in.FirmwareCode = debianVars }, ""},
		"code as vars":      {func(in *Input) { in.FirmwareVars = kernel }, "firmware variables"},
		"a folder":          {func(in *Input) { in.Initrd = dir }, "regular file"},
		"sha384 initdata": {func(in *Input) {
			in.Initdata = []byte("version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"a\" = \"b\"\n")
		}, "sha256 only"},
		"broken initdata": {func(in *Input) { in.Initdata = []byte("=") }, "initdata"},
	} {
		in := good
		c.change(&in)
		if _, err := Compute(in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.want)
		}
	}
	for _, keys := range []string{"/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"} {
		if _, err := os.Stat(keys); err != nil {
			continue
		}
		in := good
		in.FirmwareVars = keys
		if _, err := Compute(in); err == nil || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("%s: got %v", keys, err)
		}
	}
}

func FuzzAuthenticode(f *testing.F) {
	f.Add(fakeKernel())
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Authenticode(data)
		_, _ = qemuHeader(data, 1<<20, Machine{VCPUs: 1, MemoryMiB: 512})
	})
}

// fakeVolume is a small firmware volume with one file of sections.
func fakeVolume(sections []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 72)
	copy(b[40:], "_FVH")
	le.PutUint16(b[48:], 72)
	file := make([]byte, ffsHeaderSize)
	copy(file, platformPei[:])
	n := ffsHeaderSize + len(sections)
	file[18], file[20], file[21], file[22] = 6, byte(n), byte(n>>8), byte(n>>16)
	b = append(append(b, file...), sections...)
	le.PutUint64(b[32:], uint64(len(b)))
	return b
}

func FuzzFirmware(f *testing.F) {
	pe32 := append([]byte{8, 0, 0, sectionPE32}, "MZ\x00\x00"...)
	f.Add(fakeVolume(pe32))
	guided := append([]byte{40, 0, 0, sectionGUIDed}, lzmaSection[:]...)
	guided = append(guided, 24, 0, 1, 0)
	f.Add(fakeVolume(append(guided, make([]byte, 16)...)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		_, _ = unpackOVMF(data)
		_ = checkVariables(data)
		if fv, err := volumeAt(data); err == nil {
			_, _ = runInPlace(fv, Machine{VCPUs: 1, MemoryMiB: 512})
		}
	})
}
