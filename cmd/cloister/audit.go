package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/client"
)

func auditCmd(a *app) *cobra.Command {
	return group("audit", "Check and follow the broker's record of decisions", auditVerifyCmd(a), auditTailCmd(a))
}

func auditVerifyCmd(a *app) *cobra.Command {
	var broker bool
	var heads []string
	c := &cobra.Command{
		Use:   "verify [PATH...]",
		Short: "Check every entry of audit logs: files, or folders with the logs of all replicas",
		Long: "Checks that no entry was changed, removed or moved, also across files that were rotated. That lines were cut off the end\n" +
			"shows only against an entry noted earlier: give it with --head SEQ:HASH. The exit code is 0 when all is well, 1 when it is\n" +
			"not, 2 for a wrong use.",
		RunE: func(c *cobra.Command, paths []string) error {
			if broker == (len(paths) > 0) {
				return hintError{usageError{errors.New("want either files and folders, or --broker")}, "see `" + c.CommandPath() + " --help`"}
			}
			var anchors []audit.Anchor
			for _, h := range heads {
				anchor, err := audit.ParseAnchor(h)
				if err != nil {
					return usageError{fmt.Errorf("--head: %w", err)}
				}
				anchors = append(anchors, anchor)
			}
			return a.verifyLogs(c.Context(), paths, anchors)
		},
	}
	a.broker.add(c)
	c.Flags().BoolVar(&broker, "broker", false, "check the log of a running broker, which it is asked for")
	c.Flags().StringArrayVar(&heads, "head", nil, "SEQ:HASH of an entry noted earlier, which must still be there; may be repeated")
	return c
}

// verifyLogs checks logs and prints what they are. Without paths it asks the broker for its own.
func (a *app) verifyLogs(ctx context.Context, paths []string, anchors []audit.Anchor) error {
	var all audit.Report
	held := map[audit.Anchor]bool{}
	if len(paths) == 0 {
		chain, err := a.verifyRemote(ctx, anchors, held)
		if err != nil {
			return err
		}
		all.Chains = append(all.Chains, chain)
	}
	owners := map[string]string{}
	for _, p := range paths {
		r, err := audit.Verify(ctx, p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return hint(err, "name the audit log (audit.jsonl) or the folder it is in")
		}
		if err != nil {
			return hint(err, "what stands after that line cannot be relied on; compare with a backup")
		}
		for _, chain := range r.Chains {
			if other, twice := owners[chain.Replica]; twice && chain.First > 0 {
				return fmt.Errorf("%s and %s are both of replica %q: two brokers had one name, or one log was copied", other, chain.Path, chain.Replica)
			}
			owners[chain.Replica] = chain.Path
		}
		all.Chains = append(all.Chains, r.Chains...)
		for _, anchor := range anchors {
			_, err := audit.Verify(ctx, p, anchor)
			held[anchor] = held[anchor] || err == nil
		}
	}
	for _, anchor := range anchors {
		if !held[anchor] {
			return hint(fmt.Errorf("entry %d with hash %.16s is in none of the logs", anchor.Seq, anchor.Hash),
				"lines that were there when the head was noted are gone, or it is of another broker")
		}
		all.Anchors++
	}
	if a.json {
		return a.printJSON(all)
	}
	var rows [][]string
	for _, chain := range all.Chains {
		rows = append(rows, []string{chain.Path, chain.Replica, fmt.Sprint(chain.Files), "unbroken", fmt.Sprintf("%d-%d", chain.First, chain.Last), fmt.Sprintf("%d:%s", chain.Last, chain.Head)})
	}
	a.table("LOG|REPLICA|FILES|CHAIN|ENTRIES|HEAD", rows)
	for _, chain := range all.Chains {
		if chain.Last == 0 {
			fmt.Fprintf(a.stderr, "warning: %s has no entries: there was nothing to verify\n", chain.Path)
		}
		if chain.Torn {
			fmt.Fprintf(a.stderr, "warning: %s ends with half a line: a broker is writing it, or was killed when it did\n", chain.Path)
		}
	}
	if len(anchors) == 0 {
		fmt.Fprintln(a.stderr, "hint: what was cut off the end shows with --head SEQ:HASH, a HEAD of an earlier `cloister audit verify`")
	}
	return nil
}

// verifyRemote checks the entries that a broker gives.
func (a *app) verifyRemote(ctx context.Context, anchors []audit.Anchor, held map[audit.Anchor]bool) (audit.Chain, error) {
	broker, err := a.broker.client()
	if err != nil {
		return audit.Chain{}, err
	}
	check := audit.NewChecker("broker", anchors...)
	if err := eachEntry(ctx, broker, 0, func(e audit.Entry) error { return check.Add(e, nil) }); err != nil {
		return audit.Chain{}, err
	}
	if err := check.End(); err != nil {
		return audit.Chain{}, err
	}
	for _, anchor := range anchors {
		held[anchor] = check.Holds(anchor)
	}
	return check.Chain, nil
}

// eachEntry calls fn with the entries of a broker after a number, as far as there are any now.
func eachEntry(ctx context.Context, broker *client.Client, since uint64, fn func(audit.Entry) error) error {
	entries, err := broker.Audit(ctx, since)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// followEvery is how often a broker is asked for what is new.
const followEvery = time.Second

func auditTailCmd(a *app) *cobra.Command {
	var lines uint64
	var follow bool
	c := &cobra.Command{
		Use: "tail", Short: "Print the latest decisions of a broker", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			status, err := broker.Status(c.Context())
			if err != nil {
				return err
			}
			since := status.AuditEntries - min(lines, status.AuditEntries)
			show := func(e audit.Entry) error { since = e.Seq; return a.printEntry(a.stdout, e) }
			if err := eachEntry(c.Context(), broker, since, show); err != nil || !follow {
				return err
			}
			tick := time.NewTicker(followEvery)
			defer tick.Stop()
			for {
				select {
				case <-c.Context().Done():
					return c.Context().Err()
				case <-tick.C:
					if err := eachEntry(c.Context(), broker, since, show); err != nil {
						return err
					}
				}
			}
		},
	}
	a.broker.add(c)
	c.Flags().Uint64VarP(&lines, "lines", "n", 20, "how many entries to begin with")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those that come, until interrupted")
	return c
}

// printEntry prints one entry on a line: in columns, or as it stands in the log. Texts in it may come from guests, so that what could
// steer a terminal is escaped.
func (a *app) printEntry(w io.Writer, e audit.Entry) error {
	if a.json {
		return a.printLine(e)
	}
	_, err := fmt.Fprintf(w, "%d %s %s %s %s %s\n", e.Seq, e.Time.Local().Format(time.RFC3339), plain(e.Event), plain(e.Decision), e.RequestID, plain(e.Subject+" "+e.Reason))
	return err
}

// printLine prints JSON on one line.
func (a *app) printLine(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(append(line, '\n'))
	return err
}

// plain escapes what is not to be seen.
func plain(text string) string {
	quoted := strconv.QuoteToGraphic(strings.TrimSpace(text))
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
