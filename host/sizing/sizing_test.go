package sizing

import (
	"math"
	"strings"
	"testing"
)

const gib = 1 << 30

func input(tee string, r Request) Input {
	o, err := OverheadOf(tee)
	if err != nil {
		panic(err)
	}
	return Input{Request: r, DefaultVCPUs: 1, DefaultMemoryMiB: 512, Overhead: o, Static: tee != "none", BlockMiB: 128,
		Host: Host{VCPUs: 16, MemoryMiB: 65536}}
}

func TestCompute(t *testing.T) {
	for _, tc := range []struct {
		name, tee     string
		r             Request
		vcpus, memory int
	}{
		{"default", "tpm", Default(), 1, 512},
		{"limits, static", "tpm", Request{CPULimit: 1500, MemoryLimit: gib}, 2, 1194},      // (1024 + 150) * 64/63 = 1192.6
		{"limits, in blocks", "none", Request{CPULimit: 1500, MemoryLimit: gib}, 2, 1280},  // the same in blocks of 128
		{"bounce buffers", "snp", Request{MemoryLimit: gib}, 1, 1272},                      // 64 MiB at least: 78 at 6 %
		{"bounce buffers bounded", "tdx", Request{MemoryLimit: 32 * gib}, 1, 34482},        // 1 GiB at most
		{"small limit", "tpm", Request{CPULimit: 100, MemoryLimit: 64 << 20}, 1, 218},      // below the default: limits are meant
		{"request only", "tpm", Request{CPURequest: 3000, MemoryRequest: gib}, 3, 1194},    // more than the default
		{"small request", "tpm", Request{CPURequest: 100, MemoryRequest: 1 << 20}, 1, 512}, // the default
		{"limit over request", "tpm", Request{CPULimit: 1000, CPURequest: 4000}, 1, 512},   // one formula: a limit wins
		{"odd bytes", "tpm", Request{MemoryLimit: gib + 1}, 1, 1194},                       // rounded up to whole MiB
	} {
		p, err := Compute(input(tc.tee, tc.r))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if p.VCPUs != tc.vcpus || p.MemoryMiB != tc.memory {
			t.Errorf("%s: %d vCPUs and %d MiB, want %d and %d", tc.name, p.VCPUs, p.MemoryMiB, tc.vcpus, tc.memory)
		}
		if p.Static && (p.MaxVCPUs != p.VCPUs || p.MaxMemoryMiB != p.MemoryMiB) {
			t.Errorf("%s: static, and it can grow: %+v", tc.name, p)
		}
		if !p.Static && (p.MaxVCPUs != 16 || p.MaxMemoryMiB != 65536) {
			t.Errorf("%s: cannot grow to what the host has: %+v", tc.name, p)
		}
		if p.HostMemoryMiB < p.MemoryMiB+p.in.Overhead.HostMiB {
			t.Errorf("%s: the VMM does not fit into %d MiB", tc.name, p.HostMemoryMiB)
		}
	}
}

func TestAbsurdSizesAreRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*Input)
		says string
	}{
		{"more processors than the host", func(in *Input) { in.Request.CPULimit = 17000 },
			"17 vCPUs (limit 17, request 0, overhead 0 of a processor, from x): want at most 16"},
		{"more memory than the host", func(in *Input) { in.Request.MemoryLimit = 64 * gib }, "want at most 65536"},
		{"more than the maximum", func(in *Input) { in.MaxMemoryMiB, in.Request.MemoryLimit = 1024, gib }, "want at most 1024"},
		{"negative", func(in *Input) { in.Request.MemoryLimit = -1 }, "memory limit from x is -1 bytes"},
		{"overflow", func(in *Input) { in.Request.MemoryRequest = math.MaxInt64 }, "memory request from x is 9223372036854775807"},
		{"processors", func(in *Input) { in.Request.CPURequest = math.MaxInt64 }, "processor request"},
		{"default", func(in *Input) { in.DefaultVCPUs = math.NaN() }, "the default is NaN vCPUs"},
		{"block", func(in *Input) { in.Static, in.BlockMiB = false, 0 }, "blocks have 0 MiB"},
		{"host", func(in *Input) { in.Host = Host{} }, "the host has 0 processors"},
		{"overhead", func(in *Input) { in.Overhead.FixedMiB = -1 }, "the overhead is"},
		{"bounce buffers", func(in *Input) { in.Overhead.BouncePercent = 100 }, "the bounce buffers are 100 %"},
		{"maximum", func(in *Input) { in.MaxVCPUs = -1 }, "the maximum is -1"},
	} {
		in := input("tpm", Request{Source: "x"})
		tc.edit(&in)
		if p, err := Compute(in); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %+v, error %v, want one with %q", tc.name, p, err, tc.says)
		}
	}
}

func TestGrow(t *testing.T) {
	p, err := Compute(input("none", Default()))
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Grow(p.VCPUs, p.MemoryMiB, Request{CPULimit: 2500, MemoryLimit: gib})
	if err != nil || c != (Change{VCPUs: 2, MemoryMiB: 768}) { // 1280 - 512
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = p.Grow(4, 4096, Request{CPULimit: 100, MemoryLimit: gib}); err != nil || c != (Change{}) {
		t.Errorf("a sandbox that is large enough: %+v, %v", c, err)
	}
	if _, err = p.Grow(1, 512, Request{MemoryLimit: 64 * gib}); err == nil {
		t.Error("grew beyond the host")
	}
	s, err := Compute(input("snp", Default()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Grow(s.VCPUs, s.MemoryMiB, Request{MemoryLimit: gib}); err == nil || !strings.Contains(err.Error(),
		"its size is fixed") {
		t.Errorf("a confidential sandbox grew: %v", err)
	}
	if c, err := s.Grow(s.VCPUs, s.MemoryMiB, Request{CPULimit: 500}); err != nil || c != (Change{}) {
		t.Errorf("what fits into a confidential sandbox: %+v, %v", c, err)
	}
}

func TestFromAnnotations(t *testing.T) {
	get := func(quota, period, shares, memory string) (Request, error) {
		m := map[string]string{}
		for k, v := range map[string]string{annotationQuota: quota, annotationPeriod: period,
			annotationShares: shares, annotationMemory: memory} {
			if v != "" {
				m[k] = v
			}
		}
		return FromAnnotations(m)
	}
	for _, tc := range []struct {
		quota, period, shares, memory string
		want                          Request
	}{
		{"", "", "", "", Request{Source: "default"}},
		{"150000", "100000", "512", "1073741824", Request{"annotations", 1500, 500, gib, 0}},
		{"0", "100000", "2", "0", Request{Source: "annotations"}},
		{"-1", "100000", "2", "-1", Request{Source: "annotations"}},
		{"50000", "", "", "", Request{Source: "annotations", CPULimit: 500}},
		{"1", "1000000", "", "", Request{Source: "annotations", CPULimit: 1}},
	} {
		if got, err := get(tc.quota, tc.period, tc.shares, tc.memory); err != nil || got != tc.want {
			t.Errorf("%+v: %+v, %v", tc, got, err)
		}
	}
	for _, tc := range [][4]string{
		{"x", "", "", ""}, {"9223372036854775807", "1", "", ""}, {"100", "-1", "", ""}, {"-2", "", "", ""}, {"", "", "-5", ""},
		{"", "", "9223372036854775807", ""}, {"", "", "", "9223372036854775807"}, {"", "", "", "-2"}, {"", "", "", "1e9"}, {"", "", "",
			"99999999999999999999"},
	} {
		if got, err := get(tc[0], tc[1], tc[2], tc[3]); err == nil {
			t.Errorf("%v was accepted: %+v", tc, got)
		}
	}
}

func TestFromSpec(t *testing.T) {
	for text, want := range map[string]Request{
		`{}`:           {Source: "default"},
		`{"linux":{}}`: {Source: "default"},
		`{"linux":{"resources":{"cpu":{"quota":200000,"period":100000,"shares":1024},"memory":{"limit":1048576}}}}`: {
			"spec", 2000, 1000, 1 << 20, 0},
		`{"linux":{"resources":{"cpu":{"shares":null},"memory":{}}}}`: {Source: "spec"},
	} {
		if got, err := FromSpec([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{`x`, `{"linux":{"resources":{"cpu":{"period":18446744073709551615,"quota":-9}}}}`,
		`{"linux":{"resources":{"memory":{"limit":-5}}}}`, `{"linux":{"resources":{"cpu":{"shares":18446744073709551615}}}}`} {
		if got, err := FromSpec([]byte(text)); err == nil {
			t.Errorf("%s was accepted: %+v", text, got)
		}
	}
}

func TestSum(t *testing.T) {
	got, err := Sum("pod", Request{CPULimit: 1000, MemoryLimit: 10}, Request{CPULimit: 500, CPURequest: 200, MemoryRequest: 5})
	if want := (Request{"pod", 1500, 1200, 0, 15}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if _, err := Sum("pod", Request{MemoryLimit: maxBytes}, Request{MemoryLimit: maxBytes}); err == nil {
		t.Error("the sum of two absurd sizes was accepted")
	}
	init := Request{Source: "pod", CPULimit: 4000, MemoryLimit: 100}
	if m := init.Max(Request{CPULimit: 1000}); m.CPULimit != 4000 || m.MemoryLimit != 0 || m.MemoryRequest != 100 {
		t.Errorf("%+v", m)
	}
}

// TestOverheadLeavesTheNet: whatever the size, the containers get what they asked for, and not much is wasted.
func TestOverheadLeavesTheNet(t *testing.T) {
	for _, o := range Overheads() {
		if o.Source == "" {
			t.Errorf("%s has no source", o.TEE)
		}
		for net := int64(1); net < 1<<21; net = net*3/2 + 1 {
			size := o.VM(net)
			left := size - size/structPages - int64(o.FixedMiB)
			if o.BouncePercent > 0 {
				left -= min(max(size*int64(o.BouncePercent)/100, int64(o.BounceMinMiB)), int64(o.BounceMaxMiB))
			}
			if left < net-1 || left > net+net/100+8 {
				t.Errorf("%s: a VM of %d MiB leaves %d, want %d", o.TEE, size, left, net)
			}
		}
		_, memory := o.PodFixed(2048)
		if net := 2048 - (memory - o.HostMiB); o.VM(int64(net)) > 2048 || o.VM(int64(net+1)) <= 2048 {
			t.Errorf("%s: %d MiB of 2048 are overhead", o.TEE, memory)
		}
	}
	if o, _ := OverheadOf("auto"); o.BouncePercent == 0 {
		t.Error("the unknown TEE has not the largest overhead")
	}
	if _, err := OverheadOf("x"); err == nil {
		t.Error("a TEE that is none has an overhead")
	}
	if o := Overheads()[2].Replace(0.5, 300); o.MilliCPU != 500 || o.VM(1000) != 1321 || o.Source != "the configuration" {
		t.Errorf("%+v makes %d", o, o.VM(1000))
	}
}

func TestThisHost(t *testing.T) {
	if h, err := ThisHost(); err != nil || h.VCPUs < 1 || h.MemoryMiB < 64 {
		t.Errorf("%+v, %v", h, err)
	}
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"linux":{"resources":{"cpu":{"quota":200000,"period":100000,"shares":1024},"memory":{"limit":1048576}}}}`), uint8(1))
	f.Fuzz(func(t *testing.T, raw []byte, tee uint8) {
		r, err := FromSpec(raw)
		if err != nil {
			return
		}
		all := Overheads()
		p, err := Compute(input(all[int(tee)%len(all)].TEE, r))
		if err == nil && (p.VCPUs < 1 || p.VCPUs > 16 || p.MemoryMiB < 1 || p.MemoryMiB > 65536 || p.MaxMemoryMiB < p.MemoryMiB) {
			t.Errorf("%+v makes %+v", r, p)
		}
	})
}

func TestEmulated(t *testing.T) {
	o, err := OverheadOf("none")
	if err != nil {
		t.Fatal(err)
	}
	_, plain := o.PodFixed(512)
	_, emulated := o.Emulated(100).PodFixed(512)
	if emulated != plain+150 || o.Emulated(100).VM(256) != o.VM(256) {
		t.Errorf("%d MiB with emulation, %d without: want 150 more, all of it on the host", emulated, plain)
	}
}
