package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/audit"
	"github.com/cloister/cloister/broker/client"
)

// brokerFlags say which broker to talk to; they are the same for every command that does.
type brokerFlags struct {
	url, cert, token      string
	clientCert, clientKey string
	dir                   string
}

// Environment variables that stand in for the flags.
const (
	envKBS   = "CLOISTER_KBS"
	envCert  = "CLOISTER_KBS_CERT"
	envToken = "CLOISTER_ADMIN_TOKEN_FILE"
	envDir   = "CLOISTER_BROKER_DIR"

	envClientCert = "CLOISTER_CLIENT_CERT"
	envClientKey  = "CLOISTER_CLIENT_KEY"
)

func (f *brokerFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.url, "kbs", os.Getenv(envKBS), "URL of the broker, or of a tenant: https://HOST:PORT/ns/TENANT (env "+envKBS+")")
	c.Flags().StringVar(&f.cert, "kbs-cert", os.Getenv(envCert), "PEM file with the broker's certificate (env "+envCert+")")
	c.Flags().StringVar(&f.token, "admin-token", os.Getenv(envToken), "file with the broker's admin token (env "+envToken+")")
	c.Flags().StringVar(&f.clientCert, "client-cert", os.Getenv(envClientCert), "PEM file with your certificate, for a broker that knows its admins by theirs (env "+envClientCert+")")
	c.Flags().StringVar(&f.clientKey, "client-key", os.Getenv(envClientKey), "PEM file with the key of --client-cert (env "+envClientKey+")")
	c.Flags().StringVar(&f.dir, "broker-dir", os.Getenv(envDir), "data folder of a broker on this machine, instead of URL, certificate and token (env "+envDir+")")
}

// resolve fills in what a local broker's data folder says.
func (f *brokerFlags) resolve() (client.Config, error) {
	c := client.Config{
		URL: f.url, CertificateFile: f.cert, AdminTokenFile: f.token,
		ClientCertificateFile: f.clientCert, ClientKeyFile: f.clientKey,
	}
	if f.dir != "" {
		if c.URL == "" {
			text, err := os.ReadFile(filepath.Join(f.dir, "url"))
			if err != nil {
				return c, hint(fmt.Errorf("finding the broker of %s: %w", f.dir, err), "start it with `cloister-broker serve --data %s`", f.dir)
			}
			c.URL = strings.TrimSpace(string(text))
		}
		// A broker with a certificate of its owner's has made none; then --kbs-cert or the system's authorities say whom to trust.
		if made := filepath.Join(f.dir, "tls.crt"); exists(made) {
			setIfEmpty(&c.CertificateFile, made)
		}
		if c.ClientCertificateFile == "" && c.AdminTokenFile == "" {
			c.AdminTokenFile = filepath.Join(f.dir, "admin-token")
			if !exists(c.AdminTokenFile) {
				return c, hint(fmt.Errorf("the broker of %s has no admin-token there", f.dir), "give --admin-token FILE (of brokers that share a "+
					"database, the first one made it), or --client-cert and --client-key")
			}
		}
		if strings.HasPrefix(c.URL, "http://") {
			c.CertificateFile = ""
		}
	}
	if c.URL == "" {
		return c, hintError{usageError{errors.New("no broker was named")}, "give --kbs URL, or --broker-dir DIR for a broker on this machine"}
	}
	return c, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func setIfEmpty(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

func (f *brokerFlags) client() (*client.Client, error) {
	c, err := f.resolve()
	if err != nil {
		return nil, err
	}
	return client.New(c)
}

// named tells whether a broker was named at all.
func (f *brokerFlags) named() bool { return f.url != "" || f.dir != "" }

// guestView is what a guest is told of the broker: the URL it reaches it by, and the certificate to insist on. No
// broker at all is possible: then the pod has no secrets.
func (f *brokerFlags) guestView(guestURL string) (url, certPEM string, err error) {
	if guestURL == "" && !f.named() {
		return "", "", nil
	}
	c, err := f.resolve()
	if err != nil && guestURL == "" {
		return "", "", err
	}
	if guestURL == "" {
		guestURL = c.URL
	}
	if c.CertificateFile == "" || strings.HasPrefix(guestURL, "http://") {
		return guestURL, "", nil
	}
	text, err := os.ReadFile(c.CertificateFile)
	if err != nil {
		return "", "", fmt.Errorf("reading the broker's certificate: %w", err)
	}
	return guestURL, string(text), nil
}

func brokerCmd(a *app) *cobra.Command {
	return group("broker", "Look at a key broker", brokerStatusCmd(a), brokerAuditCmd(a), brokerPolicyCmd(a), brokerRotateCmd(a))
}

func brokerStatusCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "status", Short: "What the broker knows, and which insecure switches are on", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			s, err := client.Status(c.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s)
			}
			insecure := "none"
			if len(s.Insecure) > 0 {
				insecure = strings.Join(s.Insecure, ", ")
			}
			rows := [][]string{
				{"version", s.Version}, {"started", s.Started.Local().Format("2006-01-02 15:04:05")},
				{"sessions", fmt.Sprint(s.Sessions)}, {"resources", fmt.Sprint(s.Resources)}, {"reference values", fmt.Sprint(s.ReferenceValues)},
				{"attestation policies", strings.Join(s.AttestationPolicies, ", ")}, {"audit entries", fmt.Sprint(s.AuditEntries)},
				{"insecure switches", insecure},
			}
			for _, v := range s.Verifiers {
				state := "ready"
				if !v.Ready {
					state = "off: " + v.Disabled
				}
				rows = append(rows, []string{"verifier " + v.TEE, state})
			}
			for _, f := range s.Reloads {
				if f.Error != "" {
					rows = append(rows, []string{"not taken over: " + f.What, fmt.Sprintf("since %s: %s", f.Failed.Local().Format("2006-01-02 15:04:05"), f.Error)})
				}
			}
			a.table("", rows)
			return nil
		},
	}
	a.broker.add(c)
	return c
}

func brokerAuditCmd(a *app) *cobra.Command {
	var since uint64
	var tail int
	var verify, head string
	c := &cobra.Command{
		Use: "audit", Short: "Print the decisions of the broker, or verify an audit file", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if tail < 0 {
				return usageError{fmt.Errorf("--tail is %d, expected 0 (all) or more", tail)}
			}
			if verify != "" {
				return a.verifyAudit(verify, head)
			}
			if head != "" {
				return usageError{errors.New("--head is for --verify FILE: it must be one of the hashes in the file")}
			}
			entries, err := a.auditSince(c.Context(), since)
			if err != nil {
				return err
			}
			if tail > 0 && len(entries) > tail {
				entries = entries[len(entries)-tail:]
			}
			if a.json {
				return a.printJSON(entries)
			}
			var rows [][]string
			for _, e := range entries {
				rows = append(rows, []string{fmt.Sprint(e.Seq), e.Time.Local().Format("15:04:05"), e.Event, e.Decision, e.Status, e.Subject, e.RequestID})
			}
			a.table("SEQ|TIME|EVENT|DECISION|STATUS|SUBJECT|REQUEST", rows)
			for _, e := range entries {
				if e.Reason != "" {
					fmt.Fprintf(a.stdout, "%s: %s\n", e.RequestID, e.Reason)
				}
			}
			return nil
		},
	}
	a.broker.add(c)
	c.Flags().Uint64Var(&since, "since", 0, "start after this entry")
	c.Flags().IntVar(&tail, "tail", 0, "only the last entries")
	c.Flags().StringVar(&verify, "verify", "", "check the hash chain of an audit file instead")
	c.Flags().StringVar(&head, "head", "", "with --verify: audit_head of an earlier `cloister broker status --json`, which the file must hold")
	return c
}

// auditSince reads all pages of the audit log after an entry.
func (a *app) auditSince(ctx context.Context, since uint64) ([]audit.Entry, error) {
	client, err := a.broker.client()
	if err != nil {
		return nil, err
	}
	var all []audit.Entry
	for {
		page, err := client.Audit(ctx, since)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return all, nil
		}
		all = append(all, page...)
		since = page[len(page)-1].Seq
	}
}

// verifyAudit checks a file from its first line to its last. That lines were cut off its end shows only against a head seen earlier.
func (a *app) verifyAudit(file, head string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("opening the audit file: %w", err)
	}
	defer f.Close()
	n, last, err := audit.VerifyReader(f)
	if err != nil {
		return err
	}
	at := uint64(0)
	if head != "" {
		if at, err = findHead(f, head, last); err != nil {
			return hint(err, "lines that were there when the head was noted are gone, or it is the file of another broker")
		}
	}
	if n == 0 {
		fmt.Fprintf(a.stderr, "warning: %s has no entries: there was nothing to verify\n", file)
	}
	if a.json {
		return a.printJSON(map[string]any{"file": file, "entries": n, "head": last, "head_checked": head != ""})
	}
	switch {
	case head != "":
		fmt.Fprintf(a.stdout, "%s: %d entries, unbroken, head %s; the head given is that of entry %d\n", file, n, last, at)
	default:
		fmt.Fprintf(a.stdout, "%s: %d entries, unbroken, head %s\n", file, n, last)
		fmt.Fprintln(a.stderr, "hint: what was cut off the end shows with --head HASH, the audit_head of an earlier `cloister broker status --json`")
	}
	return nil
}

// findHead looks for a hash in a file whose chain has been verified, and returns the number of its entry. The hash before the
// first entry is found in every file.
func findHead(f io.ReadSeeker, head, last string) (uint64, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("reading the audit file: %w", err)
	}
	if strings.Trim(head, "0") == "" && len(head) == len(last) {
		return 0, nil
	}
	for dec := json.NewDecoder(f); ; {
		var e audit.Entry
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("no entry of the audit file has the hash %s, its last is %s", head, last)
		} else if err != nil {
			return 0, fmt.Errorf("reading the audit file: %w", err)
		}
		if e.Hash == head {
			return e.Seq, nil
		}
	}
}
