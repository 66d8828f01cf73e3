package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/collateral"
	"github.com/cloister/cloister/broker/collateral/amdkds"
	"github.com/cloister/cloister/broker/collateral/bundle"
	"github.com/cloister/cloister/broker/collateral/catalog"
	"github.com/cloister/cloister/broker/collateral/intelpcs"
	"github.com/cloister/cloister/broker/collateral/need"
	"github.com/cloister/cloister/broker/collateral/nvidia"
	"github.com/cloister/cloister/broker/config"
	"github.com/cloister/cloister/tee/snp"
)

func collateralCmd(a *app) *cobra.Command {
	return group("collateral", "Vendors' certificates, revocation lists and reference values, for brokers without a network",
		collateralFetchCmd(a), collateralImportCmd(a), collateralListCmd(a))
}

// collateralWants is what the flags of `collateral fetch` ask for.
type collateralWants struct {
	evidence, fmspc, rims    []string
	chip, line, tcb, ca, tee string
	config                   collateral.Config
	out                      string
}

func collateralFetchCmd(a *app) *cobra.Command {
	w := collateralWants{config: collateral.DefaultConfig()}
	c := &cobra.Command{
		Use:   "fetch --out BUNDLE (--evidence FILE | --snp-chip HEX | --fmspc HEX | --rim ID)...",
		Short: "Fetch what verifying a platform takes into a bundle",
		Long: "Asks the vendors' services for certificates, revocation lists, TCB levels and reference manifests, and writes them into a\n" +
			"bundle: a folder, or one file when the name ends in .tar, .tar.gz, .tgz or .zip. --evidence finds out of saved evidence\n" +
			"what that takes. Nothing is written unless everything could be had.",
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error { return a.collateralFetch(c.Context(), w) },
	}
	f := c.Flags()
	f.StringVarP(&w.out, "out", "o", "", "the bundle to write")
	f.StringArrayVar(&w.evidence, "evidence", nil, "FILE with evidence: what a guest sent, a raw SNP report or a raw quote (repeatable)")
	f.StringVar(&w.chip, "snp-chip", "", "chip id of an AMD processor: 128 hex digits, 16 for Turin")
	f.StringVar(&w.line, "snp-line", "", "its product line: Milan, Genoa (also Bergamo, Siena) or Turin")
	f.StringVar(&w.tcb, "snp-tcb", "", "its TCB version: REPORTED_TCB as in the report, 16 hex digits")
	f.StringArrayVar(&w.fmspc, "fmspc", nil, "FMSPC of an Intel platform, 12 hex digits (repeatable)")
	f.StringVar(&w.tee, "tee", "tdx", "what runs on the platforms of --fmspc: tdx or sgx")
	f.StringVar(&w.ca, "ca", "platform", "which authority certified the platforms of --fmspc: platform or processor")
	f.StringArrayVar(&w.rims, "rim", nil, "ID of an NVIDIA reference manifest (repeatable)")
	f.StringVar(&w.config.TCBUpdate, "tcb-update", w.config.TCBUpdate, "Intel's TCB levels: early or standard")
	f.StringVar(&w.config.KDSURL, "kds-url", w.config.KDSURL, "AMD's key distribution service")
	f.StringVar(&w.config.PCSURL, "pcs-url", w.config.PCSURL, "Intel's provisioning certification service")
	f.StringVar(&w.config.PCCSURL, "pccs-url", "", "a caching service of your own, asked before Intel's")
	f.StringVar(&w.config.PCCSCertificates, "pccs-cert", "", "PEM file to trust for --pccs-url instead of the system's certificates")
	f.StringVar(&w.config.IntelRootCRLURL, "intel-root-crl-url", w.config.IntelRootCRLURL, "revocation list of Intel's root")
	f.StringVar(&w.config.NVIDIARIMURL, "nvidia-rim-url", w.config.NVIDIARIMURL, "NVIDIA's service for reference manifests")
	f.StringVar(&w.config.NVIDIAOCSPURL, "nvidia-ocsp-url", w.config.NVIDIAOCSPURL, "NVIDIA's OCSP responder")
	needs(c, "out")
	return c
}

// needs turns flags and evidence into what to fetch.
func (w collateralWants) needs() (*need.Needs, error) {
	all := &need.Needs{}
	o := need.Options{Update: w.config.TCBUpdate}
	var err error
	if w.line != "" {
		if o.Line, err = snp.ParseLine(w.line); err != nil {
			return nil, usageError{fmt.Errorf("--snp-line: %w", err)}
		}
	}
	for _, file := range w.evidence {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading the evidence: %w", err)
		}
		n, err := need.FromEvidence(data, o)
		if err != nil {
			return nil, hint(fmt.Errorf("%s: %w", file, err), "name the platform instead, see `cloister collateral fetch --help`")
		}
		all.Keys, all.Devices = append(all.Keys, n.Keys...), append(all.Devices, n.Devices...)
		for _, note := range n.Notes {
			all.Notes = append(all.Notes, file+": "+note)
		}
	}
	if w.chip != "" {
		chip, err1 := hex.DecodeString(w.chip)
		tcb, err2 := hex.DecodeString(w.tcb)
		if err1 != nil || err2 != nil || len(tcb) != 8 || !o.Line.Known() {
			return nil, usageError{errors.New("--snp-chip takes hex digits, and needs --snp-line and --snp-tcb with 16 hex digits")}
		}
		key, err := amdkds.VCEKKey(o.Line, chip, snp.DecodeTCB(o.Line, [8]byte(tcb)))
		if err != nil {
			return nil, usageError{err}
		}
		all.Keys = append(all.Keys, key, amdkds.ChainKey(o.Line, false), amdkds.CRLKey(o.Line, false))
	}
	for _, fmspc := range w.fmspc {
		keys, err := intelpcs.KeysOf(fmspc, w.ca, w.tee, w.config.TCBUpdate)
		if err != nil {
			return nil, usageError{err}
		}
		all.Keys = append(all.Keys, keys.List()...)
	}
	for _, id := range w.rims {
		all.Keys = append(all.Keys, nvidia.RIMKey(id))
	}
	if len(all.Keys) == 0 && len(all.Devices) == 0 {
		return nil, hintError{usageError{errors.New("nothing to fetch was named")}, "give --evidence, --snp-chip, --fmspc or --rim"}
	}
	slices.SortFunc(all.Keys, func(a, b collateral.Key) int { return strings.Compare(a.String(), b.String()) })
	all.Keys = slices.Compact(all.Keys)
	return all, nil
}

func (a *app) collateralFetch(ctx context.Context, w collateralWants) error {
	if err := w.config.Validate(); err != nil {
		return usageError{err}
	}
	if _, err := os.Lstat(w.out); err == nil && !bundle.IsArchive(w.out) {
		return fmt.Errorf("%s exists already", w.out)
	}
	n, err := w.needs()
	if err != nil {
		return err
	}
	for _, note := range n.Notes {
		fmt.Fprintf(a.stderr, "cloister: note: %s\n", note)
	}
	from, err := catalog.Open(w.config, nil)
	if err != nil {
		return err
	}
	defer from.Close()
	now := time.Now()
	items, err := need.Fetch(ctx, from.Cache, n, now)
	if err != nil {
		return hint(err, "%d document(s) were had, none was written; name what you do need, or try again later", len(items))
	}
	if err := bundle.Write(w.out, items, now); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(listed(items, now))
	}
	fmt.Fprintf(a.stdout, "wrote %s: %s\n", w.out, documents(len(items)))
	a.collateralTable(items, now)
	return nil
}

func documents(n int) string {
	if n == 1 {
		return "1 document"
	}
	return strconv.Itoa(n) + " documents"
}

// brokerData is the flag that names a broker's data folder.
func brokerData(c *cobra.Command, to *string) {
	def := os.Getenv(envDir)
	if def == "" {
		def = config.Default().DataDir
	}
	c.Flags().StringVar(to, "data", def, "data folder of the broker (env "+envDir+")")
}

// collateralDir is where the broker with a data folder keeps its cache.
func collateralDir(data string) string { return filepath.Join(data, "collateral") }

func collateralImportCmd(a *app) *cobra.Command {
	var data string
	c := &cobra.Command{
		Use:   "import BUNDLE...",
		Short: "Put bundles into a broker's cache; the broker may be running",
		Long: "Takes bundles of `cloister collateral fetch`, files of Intel's PCS client tool and Trustee's offline stores of VCEKs. What the\n" +
			"cache has in a newer edition stays; what has ended is refused.",
		Args: atLeast(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.collateralImport(data, args) },
	}
	brokerData(c, &data)
	return c
}

func (a *app) collateralImport(data string, bundles []string) error {
	owner, err := os.Stat(data)
	if err != nil {
		return hint(fmt.Errorf("finding the broker's data: %w", err), "name its folder with --data")
	}
	var items []collateral.Item
	for _, path := range bundles {
		src, err := bundle.Open(path)
		if err != nil {
			return err
		}
		list, err := src.Items()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		items = append(items, list...)
	}
	dir := collateralDir(data)
	// Wide bounds: what the broker holds is the broker's to trim.
	cache, err := collateral.New(collateral.Options{Dir: dir, MaxEntries: 1 << 20, MaxBytes: 1 << 40, Offline: true})
	if err != nil {
		return err
	}
	defer cache.Close()
	if err := giveTo(dir, owner); err != nil {
		return err
	}
	var refused []error
	taken := 0
	for _, it := range items {
		ok, err := cache.Put(it)
		if err != nil {
			refused = append(refused, err)
		} else if ok {
			taken++
		}
	}
	kept := len(items) - taken - len(refused)
	if a.json {
		texts := []string{}
		for _, err := range refused {
			texts = append(texts, err.Error())
		}
		err := a.printJSON(map[string]any{"imported": taken, "kept": kept, "refused": texts, "dir": dir})
		return errors.Join(err, silent(errors.Join(refused...)))
	}
	fmt.Fprintf(a.stdout, "imported %s into %s; %d of the same or a newer edition stayed, %d refused\n",
		documents(taken), dir, kept, len(refused))
	return errors.Join(refused...)
}

func collateralListCmd(a *app) *cobra.Command {
	var data string
	c := &cobra.Command{
		Use:   "list [BUNDLE...]",
		Short: "List what a broker's cache or bundles hold, for which platform, and until when it is good",
		Args:  cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			items, err := heldCollateral(collateralDir(data), args)
			if err != nil {
				return err
			}
			now := time.Now()
			if a.json {
				return a.printJSON(listed(items, now))
			}
			if len(items) == 0 {
				fmt.Fprintln(a.stdout, "no collateral")
				return nil
			}
			a.collateralTable(items, now)
			return nil
		},
	}
	brokerData(c, &data)
	return c
}

func heldCollateral(dir string, bundles []string) ([]collateral.Item, error) {
	if len(bundles) == 0 {
		items, damaged, err := collateral.ReadDir(dir)
		if err != nil {
			return nil, hint(err, "name a bundle, or the broker's data folder with --data")
		}
		if damaged > 0 {
			return items, fmt.Errorf("%s: %d file(s) are damaged; the broker removes them when it starts", dir, damaged)
		}
		return items, nil
	}
	var items []collateral.Item
	for _, path := range bundles {
		src, err := bundle.Open(path)
		if err != nil {
			return nil, err
		}
		list, err := src.Items()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		items = append(items, list...)
	}
	return items, nil
}

// collateralItem is the JSON form of one document in a listing.
type collateralItem struct {
	Platform   string     `json:"platform"`
	Kind       string     `json:"kind"`
	Name       string     `json:"name"`
	Issued     *time.Time `json:"issued,omitempty"`
	ValidUntil *time.Time `json:"valid_until,omitempty"`
	Expired    bool       `json:"expired"`
	Source     string     `json:"source"`
	Fetched    *time.Time `json:"fetched,omitempty"`
	Bytes      int        `json:"bytes"`
}

func listed(items []collateral.Item, now time.Time) []collateralItem {
	at := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	out := []collateralItem{}
	for _, it := range items {
		out = append(out, collateralItem{
			Platform: it.Key.Kind.Platform(), Kind: string(it.Key.Kind), Name: it.Key.Name, Issued: at(it.Issued), ValidUntil: at(it.Until),
			Expired: ended(it, now), Source: it.Source, Fetched: at(it.Fetched), Bytes: len(it.Data),
		})
	}
	return out
}

func ended(it collateral.Item, now time.Time) bool { return !it.Until.IsZero() && now.After(it.Until) }

// collateralTable fits 100 columns: chip ids and hashes are cut.
func (a *app) collateralTable(items []collateral.Item, now time.Time) {
	var rows [][]string
	for _, it := range items {
		until := "-"
		if !it.Until.IsZero() {
			until = it.Until.UTC().Format("2006-01-02 15:04")
		}
		if ended(it, now) {
			until += " ended"
		}
		parts := strings.Split(it.Key.Name, "/")
		for i, p := range parts {
			if len(p) > 44 {
				parts[i] = p[:8] + "…"
			}
		}
		source := it.Source
		if path := strings.LastIndexByte(source, '/'); path >= 0 {
			source = source[path+1:]
		}
		rows = append(rows, []string{string(it.Key.Kind), strings.Join(parts, "/"), until, source})
	}
	a.table("DOCUMENT|FOR|VALID UNTIL (UTC)|SOURCE", rows)
}
