package attest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"github.com/cloister/cloister/tee/eventlog"
)

const (
	pcrCount        = 24
	tpmRegister     = 23 // resettable application register; 17-22 belong to DRTM and cannot be extended from here
	firmwareLogPath = "/sys/kernel/security/tpm0/binary_bios_measurements"
)

// TPM attests with a TPM 2.0. Its keys are made on first use.
type TPM struct {
	dev     transport.TPMCloser
	logPath string
	lock    chan struct{} // holds one token; the owner may use dev and the keys

	ak *attestationKey
	ek *endorsementKey
}

// openTPM opens the first of the devices that there is.
func openTPM(names ...string) (*TPM, error) {
	var errs []error
	for _, name := range names {
		t, err := linuxtpm.Open(name)
		if err == nil {
			return NewTPMOver(t, firmwareLogPath), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("opening TPM: %w", err)
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("opening TPM: %w", errors.Join(errs...))
}

// NewTPMOver attests with the TPM behind an open transport. logPath is the
// firmware's event log; no such file means that there is no log.
func NewTPMOver(dev transport.TPMCloser, logPath string) *TPM {
	return &TPM{dev: dev, logPath: logPath, lock: make(chan struct{}, 1)}
}

// TEE implements Attester.
func (*TPM) TEE() string { return "tpm" }

// acquire waits for the device. Commands to a TPM cannot be cancelled, so the
// context is only looked at here.
func (t *TPM) acquire(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("waiting for the TPM: %w", err)
	}
	select {
	case t.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the TPM: %w", ctx.Err())
	}
}

func (t *TPM) release() { <-t.lock }

// Close flushes what was loaded and closes the device.
func (t *TPM) Close() error {
	t.lock <- struct{}{}
	defer t.release()
	if t.ak != nil {
		t.ak.flush(t.dev)
	}
	if t.ek != nil {
		t.ek.flush(t.dev)
	}
	t.ak, t.ek = nil, nil
	return t.dev.Close()
}

// ExtendPCR extends a register of the SHA-256 bank with a 32-byte digest.
func (t *TPM) ExtendPCR(ctx context.Context, pcr int, digest []byte) error {
	if pcr < 0 || pcr >= pcrCount {
		return fmt.Errorf("extending PCR %d: expected 0 to %d", pcr, pcrCount-1)
	}
	if len(digest) != 32 {
		return fmt.Errorf("extending PCR %d: digest is %d bytes, expected 32", pcr, len(digest))
	}
	if err := t.acquire(ctx); err != nil {
		return err
	}
	defer t.release()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
			{HashAlg: tpm2.TPMAlgSHA256, Digest: digest},
		}},
	}.Execute(t.dev)
	if err != nil {
		return fmt.Errorf("extending PCR %d: %w", pcr, err)
	}
	return nil
}

// ReadPCR reads a register of the SHA-256 bank.
func (t *TPM) ReadPCR(ctx context.Context, pcr int) ([]byte, error) {
	if pcr < 0 || pcr >= pcrCount {
		return nil, fmt.Errorf("reading PCR %d: expected 0 to %d", pcr, pcrCount-1)
	}
	if err := t.acquire(ctx); err != nil {
		return nil, err
	}
	defer t.release()
	values, err := t.readPCRs([]int{pcr})
	if err != nil {
		return nil, err
	}
	return values[pcr], nil
}

// readPCRs reads registers of the SHA-256 bank, as many per command as the TPM
// gives. The caller holds the lock.
func (t *TPM) readPCRs(want []int) (map[int][]byte, error) {
	values := make(map[int][]byte, len(want))
	for len(want) > 0 {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: pcrSelection(want)}.Execute(t.dev)
		if err != nil {
			return nil, fmt.Errorf("reading PCRs: %w", err)
		}
		got := selectedPCRs(rsp.PCRSelectionOut)
		if len(got) == 0 || len(got) != len(rsp.PCRValues.Digests) {
			return nil, fmt.Errorf("reading PCRs: the TPM gave %d values for %d registers of the SHA-256 bank (is the bank active?)",
				len(rsp.PCRValues.Digests), len(got))
		}
		for i, pcr := range got {
			if len(rsp.PCRValues.Digests[i].Buffer) != 32 {
				return nil, fmt.Errorf("reading PCR %d: value is %d bytes, expected 32", pcr, len(rsp.PCRValues.Digests[i].Buffer))
			}
			values[pcr] = rsp.PCRValues.Digests[i].Buffer
		}
		left := want[:0:0]
		for _, pcr := range want {
			if values[pcr] == nil {
				left = append(left, pcr)
			}
		}
		if len(left) == len(want) {
			return nil, errors.New("reading PCRs: the TPM gave other registers than asked for")
		}
		want = left
	}
	return values, nil
}

func pcrSelection(pcrs []int) tpm2.TPMLPCRSelection {
	bitmap := make([]byte, pcrCount/8)
	for _, p := range pcrs {
		bitmap[p/8] |= 1 << (p % 8)
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: bitmap}}}
}

func selectedPCRs(l tpm2.TPMLPCRSelection) []int {
	var out []int
	for _, s := range l.PCRSelections {
		if s.Hash != tpm2.TPMAlgSHA256 {
			continue
		}
		for i, bits := range s.PCRSelect {
			for b := range 8 {
				if bits&(1<<b) != 0 && 8*i+b < pcrCount {
					out = append(out, 8*i+b)
				}
			}
		}
	}
	return out
}

// RegisterHash implements Registers.
func (*TPM) RegisterHash() uint16 { return uint16(eventlog.SHA256) }

// DefaultRegister implements Registers.
func (*TPM) DefaultRegister() uint64 { return tpmRegister }

// LogIndex implements Registers: the log names PCRs by their number.
func (*TPM) LogIndex(register uint64) (uint32, error) {
	if register >= pcrCount {
		return 0, fmt.Errorf("PCR %d does not exist, expected 0 to %d", register, pcrCount-1)
	}
	return uint32(register), nil
}

// ReadRegister implements Registers.
func (t *TPM) ReadRegister(ctx context.Context, register uint64) ([]byte, error) {
	i, err := t.LogIndex(register)
	if err != nil {
		return nil, err
	}
	return t.ReadPCR(ctx, int(i))
}

// ExtendRegister implements Registers.
func (t *TPM) ExtendRegister(ctx context.Context, register uint64, digest []byte) error {
	i, err := t.LogIndex(register)
	if err != nil {
		return err
	}
	return t.ExtendPCR(ctx, int(i), digest)
}

// firmwareLog reads the event log of the boot, nil when there is none.
func (t *TPM) firmwareLog() ([]byte, error) {
	f, err := os.Open(t.logPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening firmware event log: %w", err)
	}
	defer f.Close()
	return readBounded(f, maxFirmwareLog, "firmware event log")
}
