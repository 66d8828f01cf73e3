package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/manifest"
	"github.com/cloister/cloister/author/policy"
	"github.com/cloister/cloister/author/policyview"
	"github.com/cloister/cloister/wire/initdata"
)

func policyCmd(a *app) *cobra.Command {
	return group("policy", "Make the policy that the guest enforces", policyGenerateCmd(a), policyExplainCmd(a), policyDiffCmd(a), policyTestCmd(a),
		policySimCmd(a), policyACICmd(a), policyFragmentCmd(a))
}

// policyFlags say what beyond the manifest the owner allows.
type policyFlags struct {
	allowExec      []string
	allowExecStdin bool
	denyLogs       bool
}

func (f *policyFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.allowExec, "allow-exec", nil, "allow this command to be run in any container, words separated by blanks (repeatable)")
	c.Flags().BoolVar(&f.allowExecStdin, "allow-exec-stdin", false, "let the host write to the standard input of such commands")
	c.Flags().BoolVar(&f.denyLogs, "deny-logs", false, "do not hand the containers' output to the host")
}

// generate makes the policy of the pod in file, and says which mode a file with it must have.
func (f *policyFlags) generate(c *cobra.Command, a *app, pf *podFlags, file string) (text string, mode os.FileMode, err error) {
	m, plan, err := pf.podAndPlan(c.Context(), a, file)
	if err != nil {
		return "", 0, err
	}
	o := policy.Options{AllowExecStdin: f.allowExecStdin, DenyLogs: f.denyLogs, ExecCommands: manifest.ExecCommands(m)}
	for _, command := range f.allowExec {
		o.AllowExec = append(o.AllowExec, strings.Fields(command))
	}
	mode = 0o644
	if clear := manifest.ClearSecrets(m); len(clear) > 0 {
		mode = privateMode
		for _, where := range clear {
			fmt.Fprintf(a.stderr, "warning: %s holds a Secret, which stands in clear in the policy and the initdata\n", where)
		}
		fmt.Fprintln(a.stderr, "hint: put it into the broker with `cloister secret put` and name it by a sealed secret, or let the container read it from http://127.0.0.1:8006/cdh/resource/")
	}
	text, err = policy.Generate(plan, o)
	return text, mode, err
}

func policyGenerateCmd(a *app) *cobra.Command {
	var pf podFlags
	var f policyFlags
	var kf kubeFlags
	var out, target string
	c := &cobra.Command{
		Use:   "generate [FILE|DIR|-]...",
		Short: "Make the policy that admits exactly the pods of manifests",
		Long: "Reads manifests of Kubernetes, makes the policy of each workload, and prints the manifests with the policy in the\n" +
			"annotation " + initdata.Annotation + ", comments kept.\n\n" +
			"With --for run it prints the Rego policy of one pod that `cloister run` starts.",
		Args: atLeast(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch target {
			case "kubernetes":
				return kf.generate(c, a, &pf, &f, out, args)
			case "run":
				if names := kf.given(c); len(names) > 0 {
					return hint(usageError{fmt.Errorf("%s: not with --for run", strings.Join(names, ", "))}, "they are for pods that Kubernetes starts; the others are in `%s --help`", c.CommandPath())
				}
				if len(args) != 1 {
					return usageError{fmt.Errorf("--for run takes one file, got %d", len(args))}
				}
				text, mode, err := f.generate(c, a, &pf, args[0])
				if err != nil {
					return err
				}
				return a.writeMode(out, []byte(text), mode)
			}
			if target == "aci" {
				return hint(usageError{errors.New("--for aci is a command of its own")}, "use `cloister policy aci FILE`")
			}
			return usageError{fmt.Errorf("--for %q: want kubernetes or run", target)}
		},
	}
	pf.add(c)
	f.add(c)
	kf.add(c)
	addOutput(c, &out)
	c.Flags().StringVar(&target, "for", "kubernetes", "who starts the pods: kubernetes (containerd with Cloister's or Kata's shim) or run (cloister run)")
	return c
}

func initdataCmd(a *app) *cobra.Command {
	return group("initdata", "Make and inspect the measured configuration of a pod", initdataNewCmd(a), initdataInspectCmd(a), initdataDigestCmd(a))
}

func initdataNewCmd(a *app) *cobra.Command {
	var (
		pf          podFlags
		f           policyFlags
		out         string
		policyFile  string
		guestKBS    string
		imagePolicy string
		auth        string
		roots       []string
		annotation  bool
		insecureKBS bool
	)
	c := &cobra.Command{
		Use:   "new POD.yaml",
		Short: "Make the initdata of a pod: its policy and the guest's configuration",
		Args:  exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			o := policy.InitDataOptions{ImageSecurityPolicyURI: imagePolicy, RegistryAuthURI: auth, InsecureKBS: insecureKBS}
			var mode os.FileMode
			var err error
			if policyFile != "" {
				o.Policy, mode, err = readPolicy(policyFile)
			} else {
				o.Policy, mode, err = f.generate(c, a, &pf, args[0])
			}
			if err != nil {
				return err
			}
			if o.Registries, err = pf.registries(); err != nil {
				return err
			}
			kbs, cert, err := a.broker.guestView(guestKBS)
			if err != nil {
				return err
			}
			if loopback(kbs) {
				fmt.Fprintf(a.stderr, "warning: the guest is told to find the broker at %s, which is the guest itself\n", kbs)
				fmt.Fprintln(a.stderr, "hint: give --guest-kbs the URL as the guest reaches it; this machine is 10.0.2.2 inside a guest")
			}
			o.KBSURL, o.KBSCertPEM = kbs, cert
			for _, file := range roots {
				text, err := readFile(file)
				if err != nil {
					return fmt.Errorf("reading a root certificate: %w", err)
				}
				o.ExtraRootsPEM = append(o.ExtraRootsPEM, string(text))
			}
			doc, err := policy.InitData(o)
			if err != nil {
				return err
			}
			text, err := doc.Marshal()
			if err != nil {
				return err
			}
			if annotation {
				return a.writeMode(out, []byte(initdata.EncodeAnnotation(text)+"\n"), mode)
			}
			if err := a.writeMode(out, text, mode); err != nil || out == "" {
				return err
			}
			return a.describeInitdata(out, text)
		},
	}
	pf.add(c)
	f.add(c)
	a.broker.add(c)
	addOutput(c, &out)
	c.Flags().StringVar(&policyFile, "policy", "", "take the policy from this file instead of generating it")
	c.Flags().StringVar(&guestKBS, "guest-kbs", "", "URL of the broker as the guest reaches it (default: the one given by --kbs)")
	c.Flags().BoolVar(&insecureKBS, "insecure-kbs", false, "let the guest reach the broker by plain HTTP: the host can then stand in for it")
	c.Flags().StringVar(&imagePolicy, "image-policy", "", "kbs:/// resource with the image signature policy")
	c.Flags().StringVar(&auth, "registry-auth", "", "kbs:/// resource with registry credentials (auth.json)")
	c.Flags().StringArrayVar(&roots, "extra-root", nil, "PEM file with a certificate trusted for registries (repeatable)")
	c.Flags().BoolVar(&annotation, "annotation", false, "print it as the value of the annotation io.katacontainers.config.hypervisor.cc_init_data")
	return c
}

// loopback says whether a URL means the machine that uses it.
func loopback(text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	host := u.Hostname()
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host == "localhost" || strings.HasSuffix(host, ".localhost")
	}
	return ip.Unmap().IsLoopback() || ip.IsUnspecified()
}

// readPolicy reads a policy. What is made of one that nobody else may read, nobody else may read either.
func readPolicy(file string) (text string, mode os.FileMode, err error) {
	raw, err := readFile(file)
	if err != nil {
		return "", 0, fmt.Errorf("reading the policy: %w", err)
	}
	if err := parsePolicy(string(raw)); err != nil {
		return "", 0, hint(fmt.Errorf("reading the policy: %s: %w", file, err), "the guest would stop with this; docs/howto/pod-policy.rego is one to start from")
	}
	info, err := os.Stat(file)
	if err != nil {
		return "", 0, fmt.Errorf("reading the policy: %w", err)
	}
	if info.Mode().Perm()&0o077 == 0 {
		return string(raw), privateMode, nil
	}
	return string(raw), 0o644, nil
}

// parsePolicy finds what the guest would stop for: it takes either version of Rego, version 0 first.
func parsePolicy(text string) error {
	var faults []error
	for _, version := range []ast.RegoVersion{ast.RegoV0, ast.RegoV1} {
		module, err := ast.ParseModuleWithOpts("policy", text, ast.ParserOptions{RegoVersion: version})
		switch {
		case err != nil:
			faults = append(faults, err)
		case module == nil:
			return errors.New("it is empty")
		case module.Package.Path.String() != "data.agent_policy":
			return fmt.Errorf("its package is %s, want agent_policy", strings.TrimPrefix(module.Package.Path.String(), "data."))
		default:
			return nil
		}
	}
	return policyview.SyntaxError(faults[len(faults)-1])
}

func initdataInspectCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "Check an initdata document and print what is in it", Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := readFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the initdata: %w", err)
			}
			return a.describeInitdata(args[0], text)
		},
	}
}

func (a *app) describeInitdata(name string, text []byte) error {
	doc, err := initdata.Parse(text)
	if err != nil {
		return err
	}
	alg, sum, err := initdata.Digest(text)
	if err != nil {
		return err
	}
	pcr8, err := initdata.PCR8(sum)
	if err != nil {
		return err
	}
	if a.json {
		sizes := map[string]int{}
		for key, value := range doc.Data {
			sizes[key] = len(value)
		}
		return a.printJSON(map[string]any{"file": name, "algorithm": alg, "digest": fmt.Sprintf("%x", sum), "pcr8": fmt.Sprintf("%x", pcr8), "data": sizes})
	}
	rows := [][]string{{"digest (" + alg + ")", fmt.Sprintf("%x", sum)}, {"PCR 8", fmt.Sprintf("%x", pcr8)}}
	for _, key := range sortedKeys(doc.Data) {
		rows = append(rows, []string{key, fmt.Sprintf("%d bytes", len(doc.Data[key]))})
	}
	a.table(name+"|", rows)
	return nil
}

func initdataDigestCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "digest FILE", Short: "Print the digest of an initdata document", Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := readFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the initdata: %w", err)
			}
			alg, sum, err := initdata.Digest(text)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]string{"file": args[0], "algorithm": alg, "digest": fmt.Sprintf("%x", sum)})
			}
			fmt.Fprintf(a.stdout, "%s:%x\n", alg, sum)
			return nil
		},
	}
}
