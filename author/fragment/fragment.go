// Package fragment makes signed parts of policies: the Rego modules, and what a signer adds to them. The messages themselves, and how they
// are verified, are in wire/fragment, which the guest uses as well.
//
// A module for Cloister's guest is data: its package is agent_policy.fragments["<feed>"], and it defines the constants issuer, svn and
// containers, whose elements are those of policy_data.containers. A module for Azure Container Instances has a package of its own; see
// package aci.
package fragment

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/cloister/cloister/wire/didx509"
	"github.com/cloister/cloister/wire/fragment"
)

// guestPackage is the package of modules for Cloister's guest, without the feed.
const guestPackage = "agent_policy.fragments"

// Containers takes the containers out of the text of a generated policy, without the pause container, which each pod has already.
func Containers(policy string) ([]any, error) {
	module, err := ast.ParseModuleWithOpts("policy", policy, ast.ParserOptions{RegoVersion: ast.RegoV1})
	if err == nil && module == nil {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	for _, r := range module.Rules {
		if r.Head.Name != "policy_data" || r.Head.Value == nil || !ast.IsConstant(r.Head.Value.Value) {
			continue
		}
		v, err := ast.JSON(r.Head.Value.Value)
		if err != nil {
			return nil, fmt.Errorf("reading the policy: %w", err)
		}
		data, _ := v.(map[string]any)
		list, _ := data["containers"].([]any)
		var out []any
		for _, c := range list {
			if o, ok := c.(map[string]any); ok && o["kind"] != "pause" && !pauseByType(o) {
				out = append(out, c)
			}
		}
		if len(out) == 0 {
			return nil, errors.New("reading the policy: it has no containers")
		}
		return out, nil
	}
	return nil, errors.New("reading the policy: it has no policy_data; want one that `cloister policy generate --raw` made")
}

// pauseByType knows the pause container of policies that other generators made.
func pauseByType(container map[string]any) bool {
	oci, _ := container["OCI"].(map[string]any)
	annotations, _ := oci["Annotations"].(map[string]any)
	return annotations["io.kubernetes.cri.container-type"] == "sandbox"
}

// Module writes a module for Cloister's guest. issuer may be empty.
func Module(feed, issuer string, svn uint64, containers []any) (string, error) {
	if err := checkFeed(feed); err != nil {
		return "", err
	}
	if len(containers) == 0 {
		return "", errors.New("writing a policy fragment: it has no containers")
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "package %s[%s]\n\nsvn := %d\n\n", guestPackage, quote(feed), svn)
	if issuer != "" {
		fmt.Fprintf(&b, "issuer := %s\n\n", quote(issuer))
	}
	b.WriteString("containers := ")
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(containers); err != nil {
		return "", fmt.Errorf("writing a policy fragment: %w", err)
	}
	return b.String(), nil
}

func quote(s string) string {
	text, _ := json.Marshal(s) // a string always can be
	return string(text)
}

func checkFeed(feed string) error {
	if feed == "" || strings.ContainsFunc(feed, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '"' || r == '\\' }) {
		return fmt.Errorf("feed %q: want a name without blanks and quotes, such as registry.example/team/fragment", feed)
	}
	return nil
}

// SignOptions say who signs what.
type SignOptions struct {
	Chain  []*x509.Certificate // the signer's first, the authority's last
	Key    crypto.Signer
	Issuer string // did:x509; empty: Issuer(Chain)
	Feed   string
	SVN    uint64
}

// Sign signs a module. What neither Cloister's guest nor Azure would take is refused.
func Sign(module string, o SignOptions) ([]byte, error) {
	if err := checkFeed(o.Feed); err != nil {
		return nil, err
	}
	m, err := ast.ParseModuleWithOpts("fragment", module, ast.ParserOptions{RegoVersion: ast.RegoV1})
	if err != nil {
		return nil, fmt.Errorf("reading the fragment: %w", err)
	}
	if m == nil {
		return nil, errors.New("reading the fragment: it is empty")
	}
	pkg := strings.TrimPrefix(m.Package.Path.String(), "data.")
	want := strings.TrimPrefix(ast.MustParseRef("data."+guestPackage).Append(ast.StringTerm(o.Feed)).String(), "data.")
	if strings.HasPrefix(pkg, "agent_policy") && pkg != want {
		return nil, fmt.Errorf("reading the fragment: its package is %s, want %s for this feed", pkg, want)
	}
	for _, r := range m.Rules {
		if r.Head.Name == "svn" && r.Head.Value != nil {
			if got := strings.Trim(r.Head.Value.String(), `"`); got != fmt.Sprint(o.SVN) {
				return nil, fmt.Errorf("reading the fragment: its svn is %s, want %d", got, o.SVN)
			}
		}
	}
	if o.Issuer == "" {
		if o.Issuer, err = Issuer(o.Chain); err != nil {
			return nil, err
		}
	}
	raw, err := fragment.Sign(fragment.Header{Issuer: o.Issuer, Feed: o.Feed, SVN: o.SVN, Chain: o.Chain}, []byte(module), o.Key)
	if err != nil {
		return nil, err
	}
	parsed, err := fragment.Parse(raw)
	if err == nil {
		// The time is not looked at: what is signed today may be for later, and verifiers have their own clock.
		if err = parsed.Verify(o.Chain[0].NotAfter); errors.Is(err, didx509.ErrExpired) {
			err = nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("checking the signed fragment: %w", err)
	}
	return raw, nil
}

// Issuer names the owner of a chain: the authority at its end, and either a usage that the signer's certificate has for itself or, without
// one, its subject.
func Issuer(chain []*x509.Certificate) (string, error) {
	if len(chain) < 2 {
		return "", fmt.Errorf("naming the issuer: the chain has %d certificates, want the signer's and its authority's", len(chain))
	}
	name := "did:x509:0:sha256:" + didx509.Fingerprint(chain[len(chain)-1])
	leaf := chain[0]
	for _, oid := range leaf.UnknownExtKeyUsage {
		return name + "::eku:" + oid.String(), nil
	}
	known := map[string]string{"2.5.4.3": "CN", "2.5.4.7": "L", "2.5.4.8": "ST", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.6": "C"}
	var subject strings.Builder
	for _, a := range leaf.Subject.Names {
		if v, ok := a.Value.(string); ok && known[a.Type.String()] != "" {
			subject.WriteString(":" + known[a.Type.String()] + ":" + didx509.Encode(v))
		}
	}
	if subject.Len() == 0 {
		return "", errors.New("naming the issuer: the signer's certificate has neither a usage of its own nor a subject")
	}
	return name + "::subject" + subject.String(), nil
}

// maxPEMBytes bounds files of certificates.
const maxPEMBytes = 1 << 20

// ReadChain reads certificates in PEM, the signer's first.
func ReadChain(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxPEMBytes {
		return nil, fmt.Errorf("reading the certificate chain: it has %d bytes, the limit is %d", len(text), maxPEMBytes)
	}
	var chain []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if text = rest; block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading the certificate chain: %w", err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("reading the certificate chain: there is no certificate in PEM")
	}
	return chain, nil
}
