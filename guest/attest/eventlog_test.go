package attest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister/cloister/guest/attest"
	"github.com/cloister/cloister/tee/eventlog"
)

// fakeRegisters are three SHA-256 registers that can be made to fail.
type fakeRegisters struct {
	noEvidence
	values [3][]byte
	before error // the extension fails and changes nothing
	after  error // the extension fails after the register changed
}

func newRegisters() *fakeRegisters {
	f := new(fakeRegisters)
	for i := range f.values {
		f.values[i] = make([]byte, 32)
	}
	return f
}

func (*fakeRegisters) RegisterHash() uint16    { return uint16(eventlog.SHA256) }
func (*fakeRegisters) DefaultRegister() uint64 { return 1 }

func (f *fakeRegisters) LogIndex(r uint64) (uint32, error) {
	if r >= uint64(len(f.values)) {
		return 0, errors.New("no such register")
	}
	return uint32(r), nil
}

func (f *fakeRegisters) ReadRegister(_ context.Context, r uint64) ([]byte, error) {
	return f.values[r], nil
}

func (f *fakeRegisters) ExtendRegister(_ context.Context, r uint64, digest []byte) error {
	if f.before != nil {
		return f.before
	}
	sum := sha256.Sum256(append(append([]byte(nil), f.values[r]...), digest...))
	f.values[r] = sum[:]
	return f.after
}

// checkLog replays the log and compares it with the registers.
func checkLog(t *testing.T, dir string, f *fakeRegisters, events int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "eventlog"))
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	header := le.AppendUint32(nil, 0)
	header = le.AppendUint32(header, 3)
	header = append(header, make([]byte, 20)...)
	header = le.AppendUint32(header, 37)
	header = append(header, make([]byte, 24)...)
	header = le.AppendUint32(header, 2)
	for _, v := range []uint16{0x0b, 32, 0x0c, 48} {
		header = le.AppendUint16(header, v)
	}
	l, err := eventlog.Parse(append(append(header, 0), b...))
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Events) != events+1 {
		t.Errorf("%d events, expected %d", len(l.Events)-1, events)
	}
	regs, err := l.Replay(eventlog.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range f.values {
		got := regs[uint32(i)]
		if got == nil {
			got = make([]byte, 32)
		}
		if !bytes.Equal(got, v) {
			t.Errorf("replay of register %d gives %x, it has %x", i, got, v)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, ".wal_event_entry")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a write-ahead file is left (%v)", err)
	}
}

func event(t *testing.T, content string) eventlog.AAEL {
	return must(eventlog.NewAAEL("example.org", "op", content))(t)
}

func TestEventLog(t *testing.T) {
	ctx, dir, f := t.Context(), t.TempDir(), newRegisters()
	l := must(attest.OpenEventLog(ctx, dir, f, nil))(t)
	two, nine := uint64(2), uint64(9)
	for _, step := range []struct {
		content  string
		register *uint64
		ok       bool
	}{{"one", nil, true}, {"two words", nil, true}, {"other register", &two, true}, {"x", &nine, false}, {strings.Repeat("x", 1<<20), nil, false}} {
		if err := l.Extend(ctx, event(t, step.content), step.register); (err == nil) != step.ok {
			t.Errorf("%.20q: %v", step.content, err)
		}
	}
	checkLog(t, dir, f, 3)
	if _, err := attest.OpenEventLog(ctx, dir, f, &nine); err == nil {
		t.Error("opened with a register that does not exist")
	}
}

// TestEventLogIsBounded has a container flood the log, by number and by size; the guest's own events still find room.
func TestEventLogIsBounded(t *testing.T) {
	ctx := t.Context()
	for name, content := range map[string]string{"many": "", "large": strings.Repeat("x", 60<<10)} {
		t.Run(name, func(t *testing.T) {
			dir, f := t.TempDir(), newRegisters()
			g := must(attest.NewAgent(ctx, f, nil, true, dir, nil, nil))(t)
			fill := func(measure func() error, limit int) (n int) {
				for ; ; n++ {
					before := f.values[1]
					switch err := measure(); {
					case errors.Is(err, attest.ErrLogFull):
						if !bytes.Equal(before, f.values[1]) {
							t.Error("a refused event was measured")
						}
						return n
					case err != nil || n > limit:
						t.Fatalf("after %d events: %v", n, err)
					}
				}
			}
			container := func() error { return g.MeasureForContainer(ctx, "example.org", "op", content) }
			guest := func() error { return g.Measure(ctx, attest.Domain, "PullImage", content, nil) }
			n := fill(container, 2048)
			if name == "many" {
				g = must(attest.NewAgent(ctx, f, nil, true, dir, nil, nil))(t) // the bound outlives the process
				if err := container(); !errors.Is(err, attest.ErrLogFull) || !strings.Contains(err.Error(), "2049 events") {
					t.Errorf("after a restart: %v", err)
				}
			}
			n += fill(guest, 4096)
			if want := map[string]int{"many": 4096, "large": 8}[name]; n != want {
				t.Errorf("%d events, expected %d", n, want)
			}
			checkLog(t, dir, f, n)
		})
	}
}

func TestEventLogRecovers(t *testing.T) {
	ctx := t.Context()
	boom := errors.New("boom")
	for name, crash := range map[string]func(dir string, f *fakeRegisters, l *attest.EventLog){
		"after the extension": func(dir string, f *fakeRegisters, l *attest.EventLog) {
			f.after = boom
			if err := l.Extend(ctx, event(t, "lost"), nil); !errors.Is(err, boom) {
				t.Errorf("extension said %v", err)
			}
			f.after = nil
		},
		"after the extension of another register": func(dir string, f *fakeRegisters, l *attest.EventLog) {
			f.after = boom
			r := uint64(0)
			_ = l.Extend(ctx, event(t, "lost"), &r)
			f.after = nil
		},
		"before the extension": func(dir string, f *fakeRegisters, l *attest.EventLog) {
			e := event(t, "lost")
			value := eventlog.SHA256.Sum(f.values[1], eventlog.SHA256.Sum(e.Data()))
			fi, err := os.Stat(filepath.Join(dir, "eventlog"))
			if err != nil {
				t.Fatal(err)
			}
			wal := binary.BigEndian.AppendUint64(nil, uint64(fi.Size()))
			wal = append(append(wal, value...), e.Text()...)
			if err := os.WriteFile(filepath.Join(dir, ".wal_event_entry"), wal, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"within the record": func(dir string, f *fakeRegisters, l *attest.EventLog) {
			f.after = boom
			_ = l.Extend(ctx, event(t, "lost"), nil)
			f.after = nil
			file := must(os.OpenFile(filepath.Join(dir, "eventlog"), os.O_APPEND|os.O_WRONLY, 0))(t)
			defer file.Close()
			if _, err := file.Write([]byte{1, 0, 0}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, f := t.TempDir(), newRegisters()
			l := must(attest.OpenEventLog(ctx, dir, f, nil))(t)
			if err := l.Extend(ctx, event(t, "kept"), nil); err != nil {
				t.Fatal(err)
			}
			crash(dir, f, l)
			l = must(attest.OpenEventLog(ctx, dir, f, nil))(t)
			if err := l.Extend(ctx, event(t, "later"), nil); err != nil {
				t.Fatal(err)
			}
			checkLog(t, dir, f, 3)
		})
	}
	t.Run("failed extension", func(t *testing.T) {
		dir, f := t.TempDir(), newRegisters()
		l := must(attest.OpenEventLog(ctx, dir, f, nil))(t)
		f.before = boom
		if err := l.Extend(ctx, event(t, "refused"), nil); !errors.Is(err, boom) {
			t.Errorf("extension said %v", err)
		}
		f.before = nil
		if err := l.Extend(ctx, event(t, "later"), nil); err != nil {
			t.Fatal(err)
		}
		checkLog(t, dir, f, 1)
	})
	t.Run("not ours", func(t *testing.T) {
		dir := t.TempDir()
		wal := append(make([]byte, 8), bytes.Repeat([]byte{7}, 40)...)
		if err := os.WriteFile(filepath.Join(dir, ".wal_event_entry"), wal, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := attest.OpenEventLog(ctx, dir, newRegisters(), nil); err == nil {
			t.Error("a write-ahead file that fits no register was passed over")
		}
	})
}
