package attest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cloister/cloister/tee/eventlog"
)

// Where the runtime event log is kept.
const (
	DefaultLogDir = "/run/attestation-agent"
	logName       = "eventlog"
	walName       = ".wal_event_entry"

	maxEventText = 64 << 10
	maxRegisters = 64

	// Bounds of the whole log: it lies in memory and has to fit into evidence.
	maxLogEvents = 4096
	maxLogBytes  = 512 << 10
	// containerShare is the part of the log that containers may fill: one that floods it must not keep the guest from
	// recording what it does itself.
	containerShare = 2
)

// ErrLogFull means that the runtime event log takes no more events.
var ErrLogFull = errors.New("the runtime event log is full")

// EventLog extends measurement registers and records what was measured, so that
// a verifier can replay it. A write-ahead file is made before a register
// changes: a crash at any point leaves a log that can be brought to agree with
// the registers, which OpenEventLog does.
type EventLog struct {
	dir      string
	regs     Registers
	alg      eventlog.Alg
	register uint64

	lock   chan struct{} // holds one token
	events int           // in the log; guarded by lock
}

// OpenEventLog opens the log in dir and finishes what a crash left half done.
// register is used for events that name none; nil means the platform's own.
func OpenEventLog(ctx context.Context, dir string, regs Registers, register *uint64) (*EventLog, error) {
	l := &EventLog{dir: dir, regs: regs, alg: eventlog.Alg(regs.RegisterHash()), register: regs.DefaultRegister(), lock: make(chan struct{}, 1)}
	if register != nil {
		l.register = *register
	}
	if l.alg.New() == nil {
		return nil, fmt.Errorf("opening the runtime event log: registers use the unknown hash %v", l.alg)
	}
	if _, err := regs.LogIndex(l.register); err != nil {
		return nil, fmt.Errorf("opening the runtime event log: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("opening the runtime event log: %w", err)
	}
	if err := l.recover(ctx); err != nil {
		return nil, fmt.Errorf("finishing the interrupted runtime event: %w", err)
	}
	var err error
	if l.events, err = l.count(); err != nil {
		return nil, fmt.Errorf("opening the runtime event log: %w", err)
	}
	return l, nil
}

// Extend measures one event of the guest. register is nil for the default one.
func (l *EventLog) Extend(ctx context.Context, event eventlog.AAEL, register *uint64) error {
	return l.add(ctx, event, register, 1)
}

// ExtendForContainer measures one event of a container.
func (l *EventLog) ExtendForContainer(ctx context.Context, event eventlog.AAEL) error {
	return l.add(ctx, event, nil, containerShare)
}

// add measures an event while the log is below its bounds divided by share.
func (l *EventLog) add(ctx context.Context, event eventlog.AAEL, register *uint64, share int) error {
	text := event.Text()
	if len(text) > maxEventText {
		return fmt.Errorf("measuring a runtime event: %d bytes, expected at most %d", len(text), maxEventText)
	}
	reg := l.register
	if register != nil {
		reg = *register
	}
	index, err := l.regs.LogIndex(reg)
	if err != nil {
		return fmt.Errorf("measuring a runtime event: %w", err)
	}
	select {
	case l.lock <- struct{}{}:
		defer func() { <-l.lock }()
	case <-ctx.Done():
		return fmt.Errorf("measuring a runtime event: %w", ctx.Err())
	}
	if err := l.extend(ctx, text, reg, index, share); err != nil {
		return fmt.Errorf("measuring a runtime event: %w", err)
	}
	l.events++
	return nil
}

func (l *EventLog) extend(ctx context.Context, text string, reg uint64, index uint32, share int) error {
	data := eventlog.AAELData(text)
	record := eventlog.AAELRecord(index, l.alg, data)
	offset, err := l.size()
	if err != nil {
		return err
	}
	if size := offset + int64(len(record)); l.events >= maxLogEvents/share || size > maxLogBytes/int64(share) {
		return fmt.Errorf("%w: it would have %d events in %d bytes, expected at most %d in %d",
			ErrLogFull, l.events+1, size, maxLogEvents/share, maxLogBytes/share)
	}
	digest := l.alg.Sum(data)
	value, err := l.regs.ReadRegister(ctx, reg)
	if err != nil {
		return err
	}
	wal := binary.BigEndian.AppendUint64(nil, uint64(offset))
	wal = append(wal, l.alg.Sum(value, digest)...)
	wal = append(wal, text...)
	if err := writeSynced(l.path(walName), wal, 0, os.O_CREATE|os.O_EXCL); err != nil {
		return err
	}
	if err := l.regs.ExtendRegister(ctx, reg, digest); err != nil {
		return errors.Join(err, l.abandon(ctx, reg, value))
	}
	return l.finish(record, offset)
}

// abandon drops the write-ahead file of an extension that failed, once it is
// sure that the register did not change.
func (l *EventLog) abandon(ctx context.Context, reg uint64, before []byte) error {
	value, err := l.regs.ReadRegister(ctx, reg)
	if err != nil || !bytes.Equal(value, before) {
		return err // recovered when the log is opened next
	}
	return os.Remove(l.path(walName))
}

func (l *EventLog) finish(record []byte, offset int64) error {
	if err := writeSynced(l.path(logName), record, offset, os.O_CREATE); err != nil {
		return err
	}
	return os.Remove(l.path(walName))
}

// recover completes the event of a left-over write-ahead file.
func (l *EventLog) recover(ctx context.Context) error {
	f, err := os.Open(l.path(walName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	hashLen := l.alg.New().Size()
	wal, err := readBounded(f, 8+hashLen+maxEventText, "the write-ahead file")
	if err != nil {
		return err
	}
	size, err := l.size()
	if err != nil {
		return err
	}
	if len(wal) <= 8+hashLen {
		// Cut while it was written: the register was not touched yet.
		return os.Remove(l.path(walName))
	}
	offset := binary.BigEndian.Uint64(wal)
	if offset > uint64(size) {
		return fmt.Errorf("it belongs at offset %d of a log of %d bytes", offset, size)
	}
	expected, data := wal[8:8+hashLen], eventlog.AAELData(string(wal[8+hashLen:]))
	digest := l.alg.Sum(data)
	reg, done, err := l.findRegister(ctx, expected, digest)
	if err != nil {
		return err
	}
	if !done {
		if err := l.regs.ExtendRegister(ctx, reg, digest); err != nil {
			return err
		}
	}
	index, err := l.regs.LogIndex(reg)
	if err != nil {
		return err
	}
	return l.finish(eventlog.AAELRecord(index, l.alg, data), int64(offset))
}

// findRegister finds the register an interrupted event belongs to: one that has
// the expected value already (done), or would have it after the event.
func (l *EventLog) findRegister(ctx context.Context, expected, digest []byte) (reg uint64, done bool, err error) {
	candidates := []uint64{l.register}
	for r := range uint64(maxRegisters) {
		if r != l.register {
			candidates = append(candidates, r)
		}
	}
	for _, r := range candidates {
		if _, err := l.regs.LogIndex(r); err != nil {
			continue
		}
		value, err := l.regs.ReadRegister(ctx, r)
		if err != nil {
			return 0, false, err
		}
		if bytes.Equal(value, expected) {
			return r, true, nil
		}
		if bytes.Equal(l.alg.Sum(value, digest), expected) {
			return r, false, nil
		}
	}
	return 0, false, fmt.Errorf("no register has or can reach the expected value %x", expected)
}

func (l *EventLog) path(name string) string { return filepath.Join(l.dir, name) }

func (l *EventLog) size() (int64, error) {
	fi, err := os.Stat(l.path(logName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// count counts the records of a log that was left by an earlier process.
func (l *EventLog) count() (int, error) {
	f, err := os.Open(l.path(logName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	log, err := readBounded(f, maxLogBytes, "the log")
	if err != nil {
		return 0, err
	}
	// A record is index, type, number of digests (one), algorithm, digest, length and data.
	head, n := 4+4+4+2+l.alg.New().Size(), 0
	for ; len(log) > 0; n++ {
		if len(log) < head+4 || uint64(binary.LittleEndian.Uint32(log[head:])) > uint64(len(log)-head-4) {
			return 0, fmt.Errorf("record %d is cut", n+1)
		}
		log = log[head+4+int(binary.LittleEndian.Uint32(log[head:])):]
	}
	return n, nil
}

// writeSynced writes b at an offset, cuts the file after it, and waits until it
// is on the medium.
func writeSynced(path string, b []byte, offset int64, flags int) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(offset); err != nil {
		return err
	}
	if _, err := f.WriteAt(b, offset); err != nil {
		return err
	}
	return f.Sync()
}
