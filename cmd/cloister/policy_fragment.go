package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/fragment"
	"github.com/cloister/cloister/author/genpolicy"
	"github.com/cloister/cloister/internal/pemkey"
	"github.com/cloister/cloister/wire/didx509"
	signed "github.com/cloister/cloister/wire/fragment"
)

func policyFragmentCmd(a *app) *cobra.Command {
	return group("fragment", "Make and check signed parts of policies",
		fragmentNewCmd(a), fragmentSignCmd(a), fragmentVerifyCmd(a), fragmentInspectCmd(a))
}

func fragmentNewCmd(a *app) *cobra.Command {
	var feed, issuer, out, object string
	var svn uint64
	c := &cobra.Command{
		Use:   "new POLICY",
		Short: "Make a fragment of the containers of a policy",
		Long:  "Takes the containers, without the pause container, of a policy that `cloister policy generate` has made: its text, or a manifest with it.",
		Args:  exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := a.policyText(args[0], object)
			if err != nil {
				return err
			}
			containers, err := fragment.Containers(text)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			module, err := fragment.Module(feed, issuer, svn, containers)
			if err != nil {
				return err
			}
			return a.write(out, []byte(module))
		},
	}
	c.Flags().StringVar(&feed, "feed", "", "name of the series that the fragment belongs to")
	c.Flags().StringVar(&issuer, "issuer", "", "did:x509 identity that will sign it (default: not stated in the module)")
	c.Flags().Uint64Var(&svn, "svn", 0, "security version")
	_ = c.MarkFlagRequired("feed") // the flag is there
	_ = c.MarkFlagRequired("svn")
	objectFlag(c, &object)
	addOutput(c, &out)
	return c
}

func fragmentSignCmd(a *app) *cobra.Command {
	var keyFile, chainFile, out string
	var o fragment.SignOptions
	c := &cobra.Command{
		Use:   "sign FRAGMENT.rego",
		Short: "Sign a fragment: a COSE message with the certificate chain in it",
		Args:  exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			module, err := readFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the fragment: %w", err)
			}
			key, err := readFile(keyFile)
			if err != nil {
				return fmt.Errorf("reading the signing key: %w", err)
			}
			chain, err := readFile(chainFile)
			if err != nil {
				return fmt.Errorf("reading the certificate chain: %w", err)
			}
			if o.Key, err = pemkey.Private(key); err != nil {
				return fmt.Errorf("reading the signing key: %s: %w", keyFile, err)
			}
			if o.Chain, err = fragment.ReadChain(chain); err != nil {
				return fmt.Errorf("%s: %w", chainFile, err)
			}
			raw, err := fragment.Sign(string(module), o)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			m, err := signed.Parse(raw)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "issuer %s\n", m.Issuer)
			return a.write(out, raw)
		},
	}
	c.Flags().StringVar(&keyFile, "key", "", "PEM file with the private key: ECDSA, RSA or Ed25519")
	c.Flags().StringVar(&chainFile, "chain", "", "PEM file with the certificates, the signer's first and the authority's last")
	c.Flags().StringVar(&o.Issuer, "issuer", "", "did:x509 identity (default: the authority, and the signer's own usage or subject)")
	c.Flags().StringVar(&o.Feed, "feed", "", "name of the series that the fragment belongs to")
	c.Flags().Uint64Var(&o.SVN, "svn", 0, "security version")
	for _, f := range []string{"key", "chain", "feed", "svn"} {
		_ = c.MarkFlagRequired(f) // the flag is there
	}
	addOutput(c, &out)
	return c
}

// readFragmentFile reads a signed fragment.
func readFragmentFile(file string) (*signed.Message, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the fragment: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > signed.MaxBytes {
		return nil, fmt.Errorf("reading the fragment: %s has %d bytes, the limit is %d", file, info.Size(), signed.MaxBytes)
	}
	raw, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the fragment: %w", err)
	}
	m, err := signed.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

func fragmentVerifyCmd(a *app) *cobra.Command {
	var issuer, feed, at string
	var minimum uint64
	c := &cobra.Command{
		Use:   "verify FRAGMENT.cose",
		Short: "Check a signed fragment as a guest with such a declaration does",
		Args:  exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			when := time.Now()
			if at != "" {
				var err error
				if when, err = time.Parse(time.RFC3339, at); err != nil {
					return usageError{fmt.Errorf("--at: %w", err)}
				}
			}
			m, err := readFragmentFile(args[0])
			if err != nil {
				return err
			}
			if err := m.Verify(when); err != nil {
				if errors.Is(err, didx509.ErrExpired) {
					return hint(err, "check for another time by --at; a guest's policy can take expired chains with allow_expired")
				}
				return err
			}
			switch {
			case issuer != "" && m.Issuer != issuer:
				return fmt.Errorf("verifying a policy fragment: the issuer is %s, want %s", m.Issuer, issuer)
			case feed != "" && m.Feed != feed:
				return fmt.Errorf("verifying a policy fragment: the feed is %q, want %q", m.Feed, feed)
			case !m.HasSVN && minimum > 0:
				return errors.New("verifying a policy fragment: its header has no version")
			case m.SVN < minimum:
				return fmt.Errorf("verifying a policy fragment: the version is %d, want %d or more", m.SVN, minimum)
			}
			fmt.Fprintf(a.stdout, "verified: feed %s, version %d, signed by %s\n", printable(m.Feed), m.SVN, m.Issuer)
			return nil
		},
	}
	c.Flags().StringVar(&issuer, "issuer", "", "refuse other issuers than this")
	c.Flags().StringVar(&feed, "feed", "", "refuse other feeds than this")
	c.Flags().Uint64Var(&minimum, "minimum-svn", 0, "refuse lower versions")
	c.Flags().StringVar(&at, "at", "", "check the certificates for this time (RFC 3339) instead of now")
	return c
}

func fragmentInspectCmd(a *app) *cobra.Command {
	var declare string
	c := &cobra.Command{
		Use:   "inspect FRAGMENT.cose",
		Short: "Show a signed fragment without trusting it, or the declaration that admits it",
		Args:  exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			m, err := readFragmentFile(args[0])
			if err != nil {
				return err
			}
			switch declare {
			case "":
			case "aci":
				return a.declaration(map[string]any{"fragments": []any{map[string]any{
					"issuer": m.Issuer, "feed": m.Feed, "minimum_svn": strconv.FormatUint(m.SVN, 10), "includes": []string{"containers", "fragments"},
				}}})
			case "guest":
				return a.declaration(map[string]any{"issuer": m.Issuer, "feed": m.Feed, "minimum_svn": m.SVN})
			default:
				return usageError{fmt.Errorf("--declare %q: want guest or aci", declare)}
			}
			if a.json {
				return a.declaration(map[string]any{
					"issuer": m.Issuer, "feed": m.Feed, "svn": m.SVN, "content_type": m.ContentType, "algorithm": m.Algorithm.String(), "payload": string(m.Payload),
				})
			}
			fmt.Fprintf(a.stdout, "issuer     %s\nfeed       %s\nversion    %d\ncontent    %s, %d bytes\nsigned     %s\n",
				printable(m.Issuer), printable(m.Feed), m.SVN, m.ContentType, len(m.Payload), m.Algorithm)
			for i, cert := range m.Chain {
				fmt.Fprintf(a.stdout, "chain %d    %s, %s to %s, sha256 %s\n", i, printable(cert.Subject.String()),
					cert.NotBefore.UTC().Format(time.DateOnly), cert.NotAfter.UTC().Format(time.DateOnly), didx509.Fingerprint(cert))
			}
			fmt.Fprintln(a.stdout)
			for line := range strings.Lines(string(m.Payload)) {
				fmt.Fprintln(a.stdout, "  "+printable(strings.TrimRight(strings.ReplaceAll(line, "\t", "    "), "\r\n")))
			}
			return nil
		},
	}
	c.Flags().StringVar(&declare, "declare", "", "print the declaration for policies of this kind instead: guest (policy_data.fragments) or aci")
	return c
}

// declaration prints JSON for a person to put somewhere.
func (a *app) declaration(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// readDeclaration reads what a policy says of a fragment.
func readDeclaration(file string) (genpolicy.Fragment, error) {
	var d genpolicy.Fragment
	text, err := readFile(file)
	if err != nil {
		return d, fmt.Errorf("reading the declaration of a fragment: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err = dec.Decode(&d); err == nil {
		_, err = didx509.Parse(d.Issuer)
	}
	if err == nil && (d.Feed == "" || d.MinimumSVN == 0) {
		err = errors.New("it has no feed or no minimum_svn")
	}
	if err != nil {
		return d, hint(fmt.Errorf("reading the declaration of a fragment: %s: %w", file, err), "`cloister policy fragment inspect --declare guest FRAGMENT.cose` prints one")
	}
	return d, nil
}
