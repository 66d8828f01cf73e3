package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/broker/verifier/dcap"
	snpverify "github.com/cloister/cloister/broker/verifier/snp"
	"github.com/cloister/cloister/broker/verifier/snp/snptest"
	"github.com/cloister/cloister/broker/verifier/tdx"
	"github.com/cloister/cloister/broker/verifier/tpm"
	"github.com/cloister/cloister/tee/snp"
	"github.com/cloister/cloister/test/fakedcap"
	"github.com/cloister/cloister/test/faketpm"
)

// recordings is where the evidence of real hardware is, beside the repository.
const recordings = "../shared/testdata/evidence"

// proof is evidence that is verified over and over.
type proof struct {
	name string
	once func(ctx context.Context) error
	// library is what cmd libraries is told to verify the same with; nil where it has nothing to compare with.
	library []string
}

// proofs are recorded evidence of real machines; where there is none, evidence that is made here under roots of its own.
func proofs() ([]proof, error) {
	_, err := os.Stat(filepath.Join(recordings, "cases.json"))
	var list []proof
	switch {
	case err == nil:
		list, err = recorded(recordings)
	case errors.Is(err, fs.ErrNotExist):
		list, err = made(time.Now())
	}
	if err != nil {
		return nil, err
	}
	last, err := tpmProof()
	return append(list, last), err
}

func recorded(dir string) ([]proof, error) {
	read := reader{dir: dir}
	report, vcek := "amd-sev-snp/milan-v3-oak/report.bin", "amd-sev-snp/milan-v3-oak/vcek.der"
	quote, log, published := "intel-tdx/v4-cos113.bin", "eventlog/cos-113-intel-tdx.bin", "intel-collateral/tdx-00806f050000-2025-06"
	certified, err := snptest.Evidence(read.file(report), snptest.Cert{Type: "VCEK", Data: read.file(vcek)})
	if err = errors.Join(err, read.err); err != nil {
		return nil, err
	}
	collateral := &dcap.Collateral{
		TCBInfo: read.file(published + "/tcb_info.json"), TCBInfoIssuerChain: read.file(published + "/tcb_info_issuer_chain.pem"),
		QEIdentity: read.file(published + "/qe_identity.json"), QEIdentityIssuerChain: read.file(published + "/qe_identity_issuer_chain.pem"),
		PCKCRL: read.file(published + "/pck_crl.der"), PCKCRLIssuerChain: read.file(published + "/pck_crl_issuer_chain.pem"),
		RootCRL: read.file(published + "/root_ca_crl.der"),
	}
	quoted, logged := read.file(quote), read.file(log)
	if read.err != nil {
		return nil, read.err
	}
	at := time.Date(2025, 6, 15, 0, 0, 0, 0, time.UTC)
	o := tdx.Options{Now: at, Offline: true, Collateral: &fakedcap.Source{Answer: collateral}}
	return []proof{
		{
			"SNP report of Milan, VCEK", snpOnce(certified, snpverify.Options{Now: at, Offline: true}),
			[]string{at.Format(time.RFC3339), "snp", filepath.Join(dir, report), filepath.Join(dir, vcek)},
		},
		{
			"TDX quote, collateral", tdxOnce(quoted, nil, o),
			[]string{at.Format(time.RFC3339), "tdx", filepath.Join(dir, quote), filepath.Join(dir, published)},
		},
		{"TDX quote, collateral, CCEL replay", tdxOnce(quoted, logged, o), nil},
	}, nil
}

// reader reads files and keeps the first error.
type reader struct {
	dir string
	err error
}

func (r *reader) file(name string) []byte {
	data, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil && r.err == nil {
		r.err = err
	}
	return data
}

// made makes evidence like that of real machines, under roots that no library knows.
func made(now time.Time) (list []proof, err error) {
	p, err := snptest.New(snp.Milan, now)
	if err != nil {
		return nil, err
	}
	vcek, err1 := p.VCEK(snptest.LeafOptions{})
	report, err0 := p.Sign(p.Report(3, make([]byte, 64)))
	roots, err2 := snpverify.ParseRoots(p.RootsPEM())
	certified, err3 := snptest.Evidence(report, snptest.Cert{Type: "VCEK", Data: vcek})
	if err := errors.Join(err0, err1, err2, err3); err != nil {
		return nil, err
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("making a TDX quote: %v", p)
		}
	}()
	w := fakedcap.New(outsideTests{}, now)
	quote := w.Quote(fakedcap.Spec{Body: fakedcap.TD(make([]byte, 64))})
	return []proof{
		{"made SNP report of Milan, VCEK", snpOnce(certified, snpverify.Options{Now: now, Offline: true, Roots: roots}), nil},
		{
			"made TDX quote, collateral",
			tdxOnce(quote, nil, tdx.Options{Now: w.Now, Offline: true, Collateral: w.Source(), Root: w.Root.Certificate}), nil,
		},
	}, nil
}

// outsideTests lets what is made for tests be made here: what would end a test panics.
type outsideTests struct{ testing.TB }

func (outsideTests) Helper()           {}
func (outsideTests) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func tpmProof() (proof, error) {
	t, err := faketpm.New(time.Now())
	if err != nil {
		return proof{}, err
	}
	t.Measure(4, []byte("kernel"))
	e, err := t.Evidence(make([]byte, 32))
	if err != nil {
		return proof{}, err
	}
	raw, err := json.Marshal(e)
	return proof{"made TPM quote, event log", func(context.Context) error {
		_, err := tpm.Verify(raw, tpm.Options{})
		return err
	}, nil}, err
}

func snpOnce(evidence json.RawMessage, o snpverify.Options) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := snpverify.Verify(ctx, evidence, o)
		return err
	}
}

func tdxOnce(quote, log []byte, o tdx.Options) func(context.Context) error {
	e := map[string]any{"quote": quote, "cc_eventlog": nil}
	if log != nil {
		e["cc_eventlog"] = log
	}
	return func(ctx context.Context) error {
		raw, err := json.Marshal(e) // base64 costs little beside the rest, and the verifier undoes it
		if err != nil {
			return err
		}
		_, err = tdx.Verify(ctx, raw, o)
		return err
	}
}

// verifications is how many are timed at once: about a second of them.
const verifications = 500

// runVerify measures verifications per second of processor time, ours and a library's turn by turn.
func runVerify(ctx context.Context, w io.Writer, runs int) error {
	list, err := proofs()
	if err != nil {
		return fmt.Errorf("preparing evidence: %w", err)
	}
	tmp, err := os.MkdirTemp("", "cloister-bench-verify-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	libraries := filepath.Join(tmp, "libraries")
	build := exec.CommandContext(ctx, "go", "build", "-C", "bench/libraries", "-o", libraries, ".")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the libraries to compare with: %w", err)
	}
	fmt.Fprintln(w, "\nverification of evidence\tper core second\tlibrary\tratio")
	for _, p := range list {
		var ours, theirs []time.Duration
		for range runs {
			took, err := timed(ctx, p)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			ours = append(ours, took)
			if p.library == nil {
				continue
			}
			if took, err = timedLibrary(ctx, libraries, p); err != nil {
				return fmt.Errorf("%s, with the library: %w", p.name, err)
			}
			theirs = append(theirs, took)
		}
		a := median(ours)
		if theirs == nil {
			fmt.Fprintf(w, "%s\t%.0f\t\t\n", p.name, 1/a.Seconds())
			continue
		}
		b := median(theirs)
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.2f\n", p.name, 1/a.Seconds(), 1/b.Seconds(), b.Seconds()/a.Seconds())
	}
	return nil
}

// timed is the processor time of one verification.
func timed(ctx context.Context, p proof) (time.Duration, error) {
	if err := p.once(ctx); err != nil { // warm
		return 0, err
	}
	before, err := ownTime()
	if err != nil {
		return 0, err
	}
	for range verifications {
		if err := p.once(ctx); err != nil {
			return 0, err
		}
	}
	after, err := ownTime()
	return (after - before) / verifications, err
}

func timedLibrary(ctx context.Context, libraries string, p proof) (time.Duration, error) {
	out, err := exec.CommandContext(ctx, libraries, slices.Concat([]string{strconv.Itoa(verifications)}, p.library)...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return 0, err
	}
	return time.ParseDuration(strings.TrimSpace(string(out)) + "ns")
}

// ownTime is how long this process has had a processor.
func ownTime() (time.Duration, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}
