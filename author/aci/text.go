package aci

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The versions of the framework's interface and of its data that policies are written for. Newer guests accept older policies: what came
// later they refuse, or decide by rules of their own.
const (
	apiVersion       = "0.10.0"
	frameworkVersion = "0.2.3"
)

// maxPolicyBytes bounds the text of a policy. Azure refuses far smaller ones: a container group takes 120 kB in base64.
const maxPolicyBytes = 16 << 20

// Policy is the policy of one container group.
type Policy struct {
	fragments  []Fragment
	containers []containerRule
	debug      bool
}

// entryPoints are the decisions that the guest asks for, all of which the framework makes.
var entryPoints = []string{
	"mount_device", "unmount_device", "rw_mount_device", "rw_unmount_device", "mount_overlay", "unmount_overlay",
	"create_container", "exec_in_container", "exec_external", "shutdown_container", "signal_container_process",
	"plan9_mount", "plan9_unmount", "get_properties", "dump_stacks", "runtime_logging", "load_fragment", "scratch_mount", "scratch_unmount",
}

// Text is the policy in Rego. The same group and images give the same text.
func (p *Policy) Text() (string, error) {
	var b strings.Builder
	b.WriteString("package policy\n\nimport future.keywords.every\nimport future.keywords.in\n\n")
	fmt.Fprintf(&b, "api_version := %q\nframework_version := %q\n\n", apiVersion, frameworkVersion)
	if err := p.objects(&b, p.containers); err != nil {
		return "", err
	}
	for _, flag := range []struct {
		name string
		on   bool
	}{
		{"allow_properties_access", true},
		{"allow_dump_stacks", p.debug},
		{"allow_runtime_logging", p.debug},
		{"allow_environment_variable_dropping", true}, // the service adds variables that it has not announced; required ones stay
		{"allow_unencrypted_scratch", false},
		{"allow_capability_dropping", true},
	} {
		fmt.Fprintf(&b, "%s := %t\n", flag.name, flag.on)
	}
	b.WriteByte('\n')
	for _, e := range entryPoints {
		fmt.Fprintf(&b, "%s := data.framework.%s\n", e, e)
	}
	b.WriteString("\nreason := {\"errors\": data.framework.errors}\n")
	if b.Len() > maxPolicyBytes {
		return "", fmt.Errorf("writing the policy: it has %d bytes, the limit is %d", b.Len(), maxPolicyBytes)
	}
	return b.String(), nil
}

// objects writes fragments and containers.
func (p *Policy) objects(b *strings.Builder, containers []containerRule) error {
	for _, part := range []struct {
		name  string
		value any
	}{{"fragments", p.fragments}, {"containers", containers}} {
		e := json.NewEncoder(b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		b.WriteString(part.name + " := ")
		if err := e.Encode(part.value); err != nil {
			return fmt.Errorf("writing the policy: %w", err)
		}
		b.WriteByte('\n')
	}
	return nil
}

// packageName is what a fragment's package can be called, and reservedPackages are names that mean something else in the guest.
var (
	packageName      = regexp.MustCompile("^[a-zA-Z_][a-zA-Z0-9_]{0,63}$")
	reservedPackages = []string{"policy", "framework", "api", "data", "input", "metadata", "package", "import", "default", "as", "with", "not", "some", "every", "if", "in", "contains", "else", "null", "true", "false",
		"defaultMounts", "privilegedMounts", "sandboxPrefix", "hugePagesPrefix", "plan9Prefix", "defaultPrivilegedCapabilities", "defaultUnprivilegedCapabilities"}
)

// FragmentText is the group's containers, without the pause container, as the Rego module of a fragment for Azure: a package of this name,
// with a security version. It is to be signed.
func (p *Policy) FragmentText(name string, svn uint64) (string, error) {
	if !packageName.MatchString(name) || slices.Contains(reservedPackages, name) {
		return "", fmt.Errorf("writing a fragment: %q cannot be the name of its package", name)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "package %s\n\nsvn := %q\nframework_version := %q\n\n", name, strconv.FormatUint(svn, 10), frameworkVersion)
	if err := p.objects(&b, p.containers[:len(p.containers)-1]); err != nil {
		return "", err
	}
	return b.String(), nil
}

// Encode is a policy's text as Azure takes it.
func Encode(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// HostData is what the HOST_DATA field of the SEV-SNP report of a guest with this policy holds: the SHA-256 of the text in hexadecimal.
func HostData(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
