package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/catalog"
	"github.com/cloister/cloister/broker/judge"
	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/wire/initdata"
)

func evidenceCmd(a *app) *cobra.Command {
	return group("evidence", "Verify saved evidence offline", evidenceVerifyCmd(a))
}

type evidenceFlags struct {
	tee, cases                                        string
	certs, crls, keys, quotes                         []string
	signature, pcrs, log                              string
	collateral, data                                  string
	bundles                                           []string
	nonce, reportData, initData, initDataFile, moment string
	maxVMPL                                           uint32
}

func evidenceVerifyCmd(a *app) *cobra.Command {
	var f evidenceFlags
	c := &cobra.Command{
		Use:   "verify {--tee NAME FILE | --cases FILE}",
		Short: "Verify saved evidence without a broker; exit code 0 genuine, 1 refused, 2 cannot be judged",
		Long: "Judges evidence, raw as the hardware made it or in the JSON that guests send. Nothing is fetched: certificates, revocation\n" +
			"lists and TCB levels come with the evidence or by flags, and what was not checked for want of them is said. A self-signed\n" +
			"certificate given by --cert is trusted as a root for this answer, and the answer says so; without one the vendor's roots count.\n" +
			"Genuine does not mean approved: which measurements are acceptable is the broker's policy. --cases judges every case of\n" +
			"a folder and ends with 1 if any verdict is not the expected one. docs/reference/evidence-verify.md has the rules.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case f.cases != "" && (f.tee != "" || len(args) > 0):
				return usageError{errors.New("--cases stands alone, without --tee and FILE")}
			case f.cases != "":
				return a.judgeCases(c.Context(), f.cases)
			case f.tee == "":
				return usageError{fmt.Errorf("%s needs --tee or --cases", c.CommandPath())}
			case len(args) != 1:
				return usageError{fmt.Errorf("%s takes 1 argument(s), got %d", c.CommandPath(), len(args))}
			}
			return a.judgeEvidence(c.Context(), args[0], f)
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.tee, "tee", "", "what made the evidence: "+strings.Join(judge.TEEs(), ", "))
	flags.StringVar(&f.cases, "cases", "", "file cases.json of a folder of evidence to judge as a whole")
	flags.StringArrayVar(&f.certs, "cert", nil, "certificate, chain or public key: PEM, DER or a table of certificates (repeatable)")
	flags.StringArrayVar(&f.crls, "crl", nil, "revocation list, DER or PEM (repeatable)")
	flags.StringVar(&f.collateral, "collateral", "",
		"folder with Intel's documents (tcb_info.json, …), or a bundle of 'cloister collateral fetch'")
	flags.StringVar(&f.log, "log", "", "event log (CCEL or TPM) that the registers must come out of")
	flags.StringVar(&f.nonce, "nonce", "", "nonce the evidence must be for, hex or base64; without it a replay goes unnoticed")
	flags.StringVar(&f.reportData, "report-data", "", "report data the evidence must have, hex or base64")
	flags.StringVar(&f.initData, "init-data", "", "digest of the init data the evidence must be bound to, hex or base64")
	flags.StringVar(&f.initDataFile, "initdata", "", "initdata document that the evidence must be bound to, instead of its digest")
	flags.StringVar(&f.moment, "time", "", "time to verify at, as 2026-01-02T15:04:05Z (default: now)")
	flags.StringArrayVar(&f.keys, "ak", nil, "attestation key known to be a TPM's: PEM, DER, or base64 as in the claim ak_public (repeatable)")
	flags.StringVar(&f.signature, "signature", "", "signature of a TPM quote that is in a file of its own")
	flags.StringVar(&f.pcrs, "pcrs", "", "register values of a TPM quote: tpm2-tools' file, or JSON")
	flags.StringArrayVar(&f.quotes, "quote", nil, "quote beside an HCL report or an event log: of the TPM, or of the TD (repeatable)")
	flags.StringArrayVar(&f.bundles, "bundle", nil, "bundle of 'cloister collateral fetch' (repeatable)")
	flags.StringVar(&f.data, "data", "", "data folder of a broker whose collateral may be used")
	flags.Uint32Var(&f.maxVMPL, "max-vmpl", judge.DefaultMaxVMPL, "highest VMPL that may have asked for an SNP report")
	flags.StringVar(&f.moment, "at", "", "")
	_ = flags.MarkDeprecated("at", "use --time") // it exists: the line above made it
	return c
}

func (a *app) judgeEvidence(ctx context.Context, file string, f evidenceFlags) error {
	f.tee = judge.Name(f.tee)
	in, done, err := f.input(file)
	if err != nil && a.json {
		// A program that reads verdicts gets one: nothing can be judged of files that cannot be read.
		return errors.Join(a.printJSON(unjudged(err)), exitError(judge.Unjudged.ExitCode()))
	}
	if err != nil {
		return err
	}
	defer done()
	v := judge.Judge(ctx, in)
	if a.json {
		err = a.printJSON(v)
	} else {
		a.printVerdict(f.tee, v)
	}
	if code := v.Outcome.ExitCode(); code != exitDone {
		return errors.Join(err, exitError(code))
	}
	return err
}

// unjudged is the verdict when it did not come to judging.
func unjudged(err error) judge.Verdict {
	return judge.Verdict{
		Outcome: judge.Unjudged, Reasons: strings.Split(err.Error(), "\n"), Advisories: []string{}, Claims: map[string]any{},
	}
}

func (a *app) printVerdict(tee string, v judge.Verdict) {
	fmt.Fprintf(a.stdout, "%s: %s evidence\n", v.Outcome, tee)
	for _, r := range v.Reasons {
		fmt.Fprintf(a.stdout, "- %s\n", r)
	}
	if v.TCBStatus != "" {
		fmt.Fprintf(a.stdout, "tcb status: %s; advisories: %s\n", v.TCBStatus, strings.Join(v.Advisories, ", "))
	}
	var rows [][]string
	for _, name := range sortedKeys(v.Claims) {
		switch c := v.Claims[name].(type) {
		case string, bool, int, int64, uint8, uint16, uint32, uint64:
			rows = append(rows, []string{name, fmt.Sprint(c)})
		}
	}
	if len(rows) > 0 {
		a.table("CLAIM|VALUE", rows)
	}
}

// judgeCases prints a line a case: text with tabs, or JSON.
func (a *app) judgeCases(ctx context.Context, file string) error {
	results, err := judge.Cases(ctx, file)
	if err != nil {
		return usageError{err} // nothing was judged, which must not look like a difference
	}
	differ, broken := 0, 0
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	for _, r := range results {
		switch {
		case r.Broken():
			broken++
		case !r.Match:
			differ++
		}
		if a.json {
			err = errors.Join(err, enc.Encode(r))
		} else {
			fmt.Fprintln(a.stdout, r.Line())
		}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stderr, "%d of %d cases as expected\n", len(results)-differ-broken, len(results))
	if broken > 0 {
		fmt.Fprintf(a.stderr, "%d cannot be judged by their cases; the lines say why\n", broken)
	}
	switch {
	case differ > 0:
		return exitError(exitRefused)
	case broken > 0:
		return exitError(judge.Unjudged.ExitCode())
	}
	return nil
}

// maxFile bounds each file that is read, in bytes; what package judge takes of each is less.
const maxFile = 64 << 20

// inputs reads files and values, and remembers what was wrong.
type inputs struct{ faults []error }

func (r *inputs) file(flag, name string) []byte {
	if name == "" {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		r.faults = append(r.faults, fmt.Errorf("%s: %w", flag, err))
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", name, maxFile)
	}
	if err != nil {
		r.faults = append(r.faults, fmt.Errorf("%s: %w", flag, err))
	}
	if data == nil {
		data = []byte{}
	}
	return data
}

func (r *inputs) files(flag string, names []string) [][]byte {
	var out [][]byte
	for _, n := range names {
		out = append(out, r.file(flag, n))
	}
	return out
}

func (r *inputs) value(flag, text string) []byte {
	if text == "" {
		return nil
	}
	b, err := judge.ParseBytes(text)
	if err != nil {
		r.faults = append(r.faults, fmt.Errorf("%s %w", flag, err))
	}
	return b
}

func (f *evidenceFlags) input(file string) (judge.Input, func(), error) {
	none := func() {}
	r := &inputs{}
	if !slices.Contains(judge.TEEs(), f.tee) {
		return judge.Input{}, none, usageError{fmt.Errorf("--tee %.32q has no verifier, known: %s",
			f.tee, strings.Join(judge.TEEs(), ", "))}
	}
	if len(f.keys) > 0 && !strings.HasPrefix(f.tee, "tpm") {
		return judge.Input{}, none, usageError{fmt.Errorf("--ak is for --tee tpm, not %s", f.tee)}
	}
	in := judge.Input{
		TEE: f.tee, Evidence: r.file("evidence", file), CRLs: r.files("--crl", f.crls), MaxVMPL: f.maxVMPL,
		Certificates: append(r.files("--cert", f.certs), r.files("--ak", f.keys)...),
		Signature:    r.file("--signature", f.signature), PCRs: r.file("--pcrs", f.pcrs), Log: r.file("--log", f.log),
		Nonce: r.value("--nonce", f.nonce), ReportData: r.value("--report-data", f.reportData), InitData: r.value("--init-data", f.initData),
		Time: time.Now(),
	}
	for _, q := range r.files("--quote", f.quotes) {
		if strings.HasPrefix(string(q), "\xffTCG") {
			in.Message = q
		} else {
			in.TDQuote = q
		}
	}
	f.values(r, &in)
	if err := errors.Join(r.faults...); err != nil {
		return in, none, usageError{err}
	}
	done, err := f.sources(&in)
	if err != nil {
		return in, none, usageError{err}
	}
	return in, done, nil
}

func (f *evidenceFlags) values(r *inputs, in *judge.Input) {
	var err error
	if f.initDataFile != "" {
		if f.initData != "" {
			r.faults = append(r.faults, errors.New("--init-data and --initdata are two ways of saying the same"))
		}
		if _, in.InitData, err = initdata.Digest(r.file("--initdata", f.initDataFile)); err != nil {
			r.faults = append(r.faults, fmt.Errorf("reading the initdata %s: %w", f.initDataFile, err))
		}
	}
	if f.moment != "" {
		if in.Time, err = judge.ParseTime(f.moment); err != nil {
			r.faults = append(r.faults, fmt.Errorf("--time %q: want a time as 2026-01-02T15:04:05Z", f.moment))
		}
	}
}

// sources opens the collateral there is, which asks no server.
func (f *evidenceFlags) sources(in *judge.Input) (func(), error) {
	bundles := f.bundles
	switch {
	case f.collateral == "":
	case judge.IsCollateral(f.collateral):
		folder, err := judge.OpenCollateral(f.collateral)
		if err != nil {
			return nil, err
		}
		in.Collateral = folder
	default:
		bundles = append(bundles[:len(bundles):len(bundles)], f.collateral)
	}
	cfg := collateral.DefaultConfig()
	cfg.OfflineOnly, cfg.Bundles = true, bundles
	if f.data != "" {
		cfg.CacheDir = filepath.Join(f.data, "collateral")
	}
	sources, err := catalog.Open(cfg, nil)
	if err != nil {
		return nil, err
	}
	if len(bundles) > 0 || f.data != "" {
		in.AMD, in.NVIDIA = sources.AMD, sources.NVIDIA
		if in.Collateral == nil {
			in.Collateral = sources.Intel
		}
	}
	config := verifier.Config{
		Now: func() time.Time { return in.Time }, AMD: sources.AMD, Intel: sources.Intel, NVIDIA: sources.NVIDIA, Unbound: true,
	}
	if f.tee == "nvidia-dpu" && len(f.certs) == 1 {
		config.DPURoot = f.certs[0]
	}
	if in.Others, err = verifier.NewSet(verifier.Builtin(config)); err != nil {
		sources.Close()
		return nil, err
	}
	return sources.Close, nil
}

// parseNonce accepts hex or base64; nothing is no nonce.
func parseNonce(text string) ([]byte, error) {
	r := &inputs{}
	b := r.value("--nonce", text)
	return b, errors.Join(r.faults...)
}

// silent turns an error that was already printed into an exit code.
func silent(err error) error {
	if err == nil {
		return nil
	}
	return exitError(exitRefused)
}
