package main

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	testneeds "github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/wire/initdata"
)

// tinyKernel has the headers of a kernel, and nothing to run.
func tinyKernel() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x800)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40)
	const pe, opt, sec = 0x40, 0x58, 0x58 + 160
	copy(b[pe:], "PE\x00\x00")
	le.PutUint16(b[pe+6:], 2)
	le.PutUint16(b[pe+20:], 160)
	le.PutUint16(b[opt:], 0x20b)
	le.PutUint32(b[opt+60:], 0x200)
	le.PutUint32(b[opt+108:], 6)
	le.PutUint32(b[sec+16:], 0x100)
	le.PutUint32(b[sec+20:], 0x400)
	le.PutUint32(b[sec+40+16:], 0x200)
	le.PutUint32(b[sec+40+20:], 0x200)
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	b[0x211] = 1
	le.PutUint16(b[0x236:], 3)
	return b
}

// TestComputeAllWorkloads: the values of a file are those of each of its workloads.
func TestComputeAllWorkloads(t *testing.T) {
	testneeds.Files(t, "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")
	t.Chdir(t.TempDir())
	t.Setenv("CLOISTER_HOME", t.TempDir())
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("vmlinuz", string(tinyKernel()))
	write("initrd.img", "initrd")
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	write("tpm.toml", "[sandbox]\ntee = \"tpm\"\n[guest]\nkernel = \""+filepath.Join(dir, "vmlinuz")+"\"\ninitrd = \""+filepath.Join(dir, "initrd.img")+"\"\nfirmware = \"/usr/share/OVMF/OVMF_CODE_4M.fd\"\nfirmware_vars = \"/usr/share/OVMF/OVMF_VARS_4M.fd\"\n")
	pod := func(name, policy string) string {
		doc := initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{initdata.KeyPolicy: policy}}
		raw, err := doc.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: " + name + "}\nspec:\n  template:\n    metadata: {annotations: {cloister.dev/initdata: " + initdata.EncodeAnnotation(raw) + "}}\n    spec: {containers: [{name: a, image: b}]}\n"
	}
	one, two := pod("one", "package agent_policy\n"), pod("two", "package agent_policy\n# another\n")
	compute := func(manifest string) map[string][]string {
		t.Helper()
		write("pods.yaml", manifest)
		var r struct{ Values map[string][]string }
		if err := json.Unmarshal([]byte(cli(t, exitDone, "", "refvalue", "compute", "--json", "--runtime-config", "tpm.toml", "pods.yaml")), &r); err != nil {
			t.Fatal(err)
		}
		return r.Values
	}
	first, second := compute(one), compute(two)
	both := compute(one + "---\n" + two + "---\n" + one)
	if slices.Equal(first["tpm_init_data"], second["tpm_init_data"]) || len(first["tpm_init_data"]) != 1 {
		t.Fatalf("PCR 8 of the first is %q, of the second %q", first["tpm_init_data"], second["tpm_init_data"])
	}
	for name, values := range both {
		want := slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(first[name]), second[name]...))))
		if got := slices.Sorted(slices.Values(values)); !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	write("pods.yaml", one+"---\n"+strings.Replace(two, "cloister.dev/initdata", "other", 1))
	if out := cli(t, exitDone, "", "refvalue", "compute", "--runtime-config", "tpm.toml", "pods.yaml"); strings.Contains(out, second["tpm_init_data"][0]) {
		t.Error("a workload without initdata has values")
	}
}
