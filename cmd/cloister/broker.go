package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
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
	if u, err := url.Parse(c.URL); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return c, usageError{fmt.Errorf("broker URL is %q, want http(s)://host:port", c.URL)}
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
	c := &cobra.Command{
		Use: "audit", Short: "Print the decisions of the broker; `cloister audit verify` checks the record", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if tail < 0 {
				return usageError{fmt.Errorf("--tail is %d, expected 0 (all) or more", tail)}
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
				rows = append(rows, []string{fmt.Sprint(e.Seq), e.Time.Local().Format("2006-01-02 15:04:05"), e.Event, e.Decision, e.Status, e.Subject, e.RequestID})
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
