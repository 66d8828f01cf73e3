package eventlog_test

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/tee/eventlog"
)

// shared finds the evidence collection that lives beside the repository.
func shared(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("CLOISTER_SHARED")
	if dir == "" {
		wd, err := os.Getwd()
		if err != nil {
			t.Fatal(err)
		}
		for root := wd; ; root = filepath.Dir(root) {
			if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
				dir = filepath.Join(root, "..", "shared")
				break
			}
			if root == filepath.Dir(root) {
				t.Fatal("no go.mod above the working directory")
			}
		}
	}
	dir = filepath.Join(dir, "testdata", "evidence")
	if _, err := os.Stat(filepath.Join(dir, "cases.json")); err != nil {
		needs.Optional(t, "recorded evidence, which is not part of the repository, is absent (set CLOISTER_SHARED): %v", err)
	}
	return dir
}

var algs = map[string]eventlog.Alg{"sha1": eventlog.SHA1, "sha256": eventlog.SHA256, "sha384": eventlog.SHA384, "sm3": eventlog.SM3}

func TestRealLogs(t *testing.T) {
	dir := shared(t)
	text, err := os.ReadFile(filepath.Join(dir, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		ID, Platform, Log, Expect string
		Events                    int
		Replay                    map[string]map[string]string
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, c := range cases {
		if c.Platform != "eventlog" {
			continue
		}
		ran++
		t.Run(c.ID, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(dir, c.Log))
			if err != nil {
				t.Fatal(err)
			}
			l, err := eventlog.Parse(b)
			if c.Expect == "invalid-or-empty" {
				if err == nil && len(l.Events) > 1 {
					t.Fatalf("parsed %d events of a broken log", len(l.Events))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := len(l.Events); n != c.Events {
				t.Errorf("%d events, expected %d", n, c.Events)
			}
			for name, want := range c.Replay {
				regs, err := l.Replay(algs[name])
				if err != nil {
					t.Fatal(err)
				}
				if len(regs) != len(want) {
					t.Errorf("%s: %d registers, expected %d", name, len(regs), len(want))
				}
				for idx, value := range want {
					i, _ := strconv.Atoi(idx)
					if got := hex.EncodeToString(regs[uint32(i)]); got != value {
						t.Errorf("%s register %d = %s, expected %s", name, i, got, value)
					}
				}
			}
		})
	}
	if ran == 0 {
		t.Fatal("cases.json lists no event logs")
	}
}

func TestSM3(t *testing.T) {
	for in, want := range map[string]string{
		"abc": "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0",
		"abcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcdabcd": "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732",
	} {
		if got := hex.EncodeToString(eventlog.SM3.Sum([]byte(in))); got != want {
			t.Errorf("SM3(%q) = %s, expected %s", in, got, want)
		}
	}
}

func TestAAELVector(t *testing.T) {
	a, err := eventlog.NewAAEL("domain", "operation", "content")
	if err != nil {
		t.Fatal(err)
	}
	for alg, want := range map[eventlog.Alg]string{
		eventlog.SHA256: "46df8dacf00a07d34a83cdf56d7978697790787cf2ba1432ef7c38f22cd96351",
		eventlog.SHA384: "dad5f0e226318ffa9839b75a472c6aa7fdb5834949d0a0a22990cf04d5692440fb00f3aa0609db7e49cd8d793f670d02",
	} {
		if got := hex.EncodeToString(alg.Sum(a.Data())); got != want {
			t.Errorf("%v = %s, expected %s", alg, got, want)
		}
	}
	log := append(header(), eventlog.AAELRecord(23, eventlog.SHA256, a.Data())...)
	l, err := eventlog.Parse(append(log, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	if err != nil {
		t.Fatal(err)
	}
	e := &l.Events[1]
	got, ok, err := eventlog.ParseAAEL(e)
	if !ok || err != nil || got != a || e.Index != 23 || !e.DigestsMatchData() {
		t.Errorf("read back %+v (%t, %v) in register %d", got, ok, err, e.Index)
	}
	for _, bad := range [][3]string{{"a b", "o", "c"}, {"d", "o\n", "c"}, {"d", "o", "c\nd"}, {"", "o", "c"}} {
		if _, err := eventlog.NewAAEL(bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("NewAAEL accepted %q", bad)
		}
	}
}

// header is a Spec ID event for SHA-256 alone.
func header() []byte {
	le := binary.LittleEndian
	data := append([]byte("Spec ID Event03\x00"), make([]byte, 8)...)
	data = le.AppendUint32(data, 1)
	data = le.AppendUint16(data, uint16(eventlog.SHA256))
	data = le.AppendUint16(data, 32)
	data = append(data, 0)
	b := le.AppendUint32(nil, 0)
	b = le.AppendUint32(b, uint32(eventlog.NoAction))
	b = append(b, make([]byte, 20)...)
	b = le.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func TestStartupLocality(t *testing.T) {
	le := binary.LittleEndian
	data := []byte("StartupLocality\x00\x03")
	b := header()
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(eventlog.NoAction))
	b = le.AppendUint32(b, 1)
	b = le.AppendUint16(b, uint16(eventlog.SHA256))
	b = append(b, make([]byte, 32)...)
	b = le.AppendUint32(b, uint32(len(data)))
	b = append(b, data...)
	b = append(b, eventlog.AAELRecord(0, eventlog.SHA256, []byte("x"))...)
	l, err := eventlog.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	regs, err := l.Replay(eventlog.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	start := make([]byte, 32)
	start[31] = 3
	want := eventlog.SHA256.Sum(start, eventlog.SHA256.Sum([]byte("x")))
	if hex.EncodeToString(regs[0]) != hex.EncodeToString(want) {
		t.Errorf("PCR 0 = %x, expected %x", regs[0], want)
	}
}

func TestRefused(t *testing.T) {
	rec := eventlog.AAELRecord(1, eventlog.SHA256, []byte("data"))
	huge := append(header(), rec...)
	binary.LittleEndian.PutUint32(huge[len(huge)-8:], 0xfffffff0)
	manyDigests := append(header(), rec...)
	binary.LittleEndian.PutUint32(manyDigests[len(header())+8:], 0x7fffffff)
	manyAlgs := header()
	binary.LittleEndian.PutUint32(manyAlgs[32+24:], 0xffffffff)
	for name, b := range map[string][]byte{
		"empty":          nil,
		"zeros":          make([]byte, 100),
		"short header":   header()[:20],
		"cut record":     append(header(), rec[:30]...),
		"huge data":      huge,
		"digest count":   manyDigests,
		"algorithms":     manyAlgs,
		"unlisted hash":  append(header(), eventlog.AAELRecord(1, eventlog.SHA384, nil)...),
		"trailing bytes": append(append(header(), rec...), 1, 2, 3),
		"oversized":      make([]byte, eventlog.MaxSize+1),
	} {
		if _, err := eventlog.Parse(b); err == nil {
			t.Errorf("%s: parsed without an error", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(header())
	f.Add(append(header(), eventlog.AAELRecord(23, eventlog.SHA256, eventlog.AAELData("a b c"))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := eventlog.Parse(b)
		if err != nil {
			return
		}
		for _, a := range l.Algs {
			_, _ = l.Replay(a)
		}
		for i := range l.Events {
			_, _, _ = eventlog.ParseAAEL(&l.Events[i])
			_ = l.Events[i].Type.String()
		}
	})
}
