package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/aci"
	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
)

// aciFlags say how `policy aci` makes policies.
type aciFlags struct {
	parameters, fragments    string
	openValues, pinSecure    bool
	denyLogs, debug          bool
	infrastructure           int
	noInfrastructure         bool
	raw, base64, hostData    bool
	inPlace                  bool
	fragment                 string
	svn                      uint64
	configs, insecure, where []string
	cache                    string
	noCache                  bool
}

func policyACICmd(a *app) *cobra.Command {
	var f aciFlags
	var out string
	c := &cobra.Command{
		Use:   "aci TEMPLATE.json|POD.yaml",
		Short: "Make the policies of Azure Container Instances",
		Long: "Reads an ARM template with container groups, or manifests of pods for AKS virtual nodes, makes the policy of each group,\n" +
			"and prints the file with the policies in it and all else as it was. The digest of each policy, which is the HOST_DATA\n" +
			"of its guest's SEV-SNP report, is printed as well.",
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, a, args[0], out) },
	}
	p := c.Flags()
	p.StringVar(&f.parameters, "parameters", "", "parameters file of the template")
	p.BoolVar(&f.openValues, "allow-open-values", false, "let a variable be anything where its value is known only in Azure")
	p.BoolVar(&f.pinSecure, "pin-secure-values", false, "write secure values and Secrets into the policy, which is no secret, instead of leaving them open")
	p.BoolVar(&f.denyLogs, "deny-logs", false, "do not hand the containers' output to the host")
	p.BoolVar(&f.debug, "insecure-debug", false, "let the host run shells in the containers and read the guest's logs and dumps")
	p.IntVar(&f.infrastructure, "infrastructure-svn", aci.InfrastructureSVN, "lowest version of Azure's own fragment")
	p.BoolVar(&f.noInfrastructure, "no-infrastructure", false, "leave Azure's own fragment out; volumes and identities then do not work")
	p.StringVar(&f.fragments, "fragments", "", "JSON file with more fragments to accept, as 'cloister policy fragment inspect --declare aci' prints it")
	p.StringVar(&f.fragment, "fragment", "", "make a fragment with this package name instead of a policy, for 'cloister policy fragment sign'")
	p.Uint64Var(&f.svn, "svn", 0, "security version of the fragment")
	p.BoolVar(&f.raw, "raw", false, "print the policies instead of the file")
	p.BoolVar(&f.base64, "base64", false, "print the policies in base64 instead of the file")
	p.BoolVar(&f.hostData, "host-data", false, "print only the digests")
	p.BoolVar(&f.inPlace, "in-place", false, "change the file instead of printing it")
	p.StringArrayVar(&f.configs, "config-file", nil, "more YAML with ConfigMaps and Secrets of pods (repeatable)")
	p.StringArrayVar(&f.where, "image-source", nil, "registry, oci:DIR, archive:FILE or containerd[:SOCKET[,NAMESPACE]] (repeatable, tried in order; default: registry)")
	p.StringVar(&f.cache, "cache", "", "folder that keeps what was found in layers; default: layers in the user's cache folder")
	p.BoolVar(&f.noCache, "no-cache", false, "keep nothing, and use nothing that was kept")
	addInsecureRegistry(c, &f.insecure)
	addOutput(c, &out)
	return c
}

// aciJob is what was read: groups, and how a policy gets into the file.
type aciJob struct {
	path     string // where it was read from
	groups   []*aci.Group
	warnings []string
	insert   func(i int, policy string) error
	text     func() ([]byte, error)
}

func (f *aciFlags) run(c *cobra.Command, a *app, file, out string) error {
	forms := 0
	for _, set := range []bool{f.raw, f.base64, f.hostData, f.inPlace, f.fragment != ""} {
		if set {
			forms++
		}
	}
	if forms > 1 || f.inPlace && out != "" {
		return usageError{errors.New("at most one of --raw, --base64, --host-data, --in-place (without --output) and --fragment can be given")}
	}
	if f.fragment != "" && f.svn == 0 {
		return usageError{errors.New("--fragment wants --svn, 1 or more")}
	}
	o := aci.Options{DenyStdio: f.denyLogs, InsecureDebug: f.debug}
	if !f.noInfrastructure && f.fragment == "" {
		if f.infrastructure < 0 {
			return usageError{errors.New("--infrastructure-svn is negative")}
		}
		o.Fragments = append(o.Fragments, aci.Infrastructure(f.infrastructure))
	}
	if f.fragments != "" {
		text, err := os.ReadFile(f.fragments)
		if err != nil {
			return fmt.Errorf("reading the fragments: %w", err)
		}
		more, err := aci.ReadFragments(text)
		if err != nil {
			return fmt.Errorf("%s: %w", f.fragments, err)
		}
		o.Fragments = append(o.Fragments, more...)
	}
	if f.debug {
		fmt.Fprintln(a.stderr, "warning: insecure: the policy lets the host run shells in the containers and read dumps of their memory")
	}
	if f.inPlace && file == "-" {
		return usageError{errors.New("--in-place goes with a file, not with standard input")}
	}
	job, err := f.read(a, file)
	if err != nil {
		return err
	}
	for _, w := range job.warnings {
		fmt.Fprintf(a.stderr, "warning: %s\n", w)
	}
	images, err := imagesource.New(aci.SourceOptions(imagesource.Options{
		From: f.where, Registry: imagesource.RegistryOptions{Insecure: f.insecure}, Cache: f.cacheDir(),
	}))
	if err != nil {
		return err
	}
	var printed strings.Builder
	var faults []error
	for i, g := range job.groups {
		p, err := aci.Generate(c.Context(), g, aci.Source{Images: images}, o)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if f.fragment != "" {
			text, err := p.FragmentText(f.fragment, f.svn)
			if err != nil {
				return err
			}
			printed.WriteString(text)
			continue
		}
		text, err := p.Text()
		if err != nil {
			return err
		}
		switch {
		case f.raw:
			printed.WriteString(text)
		case f.base64:
			printed.WriteString(aci.Encode(text) + "\n")
		case f.hostData:
			printed.WriteString(aci.HostData(text) + "\n")
		default:
			fmt.Fprintf(a.stderr, "%s: HOST_DATA %s\n", printable(g.Name), aci.HostData(text))
			if err := job.insert(i, aci.Encode(text)); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(faults...); err != nil {
		return kubeHint(err)
	}
	if f.fragment != "" && len(job.groups) > 1 {
		return fmt.Errorf("a fragment is made of one container group, %s has %d", file, len(job.groups))
	}
	if f.raw || f.base64 || f.hostData || f.fragment != "" {
		return a.write(out, []byte(printed.String()))
	}
	text, err := job.text()
	if err != nil {
		return err
	}
	if f.inPlace {
		return rewriteFile(job.path, text)
	}
	return a.write(out, text)
}

func (f *aciFlags) cacheDir() string {
	if f.noCache || f.cache != "" {
		return f.cache
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "cloister", "layers")
}

// read reads a template, or the manifests of pods.
func (f *aciFlags) read(a *app, file string) (*aciJob, error) {
	if strings.EqualFold(filepath.Ext(file), ".json") {
		return f.readTemplate(file)
	}
	if f.parameters != "" || f.openValues {
		return nil, usageError{errors.New("--parameters and --allow-open-values are for templates")}
	}
	inputs, err := kubernetes.Read(a.stdin, file)
	if err != nil {
		return nil, err
	}
	if len(inputs) != 1 {
		return nil, hint(usageError{fmt.Errorf("%s has %d manifests; this command takes one", file, len(inputs))}, "put them into one file, with --- between them, or call it for each")
	}
	data, err := kubernetes.Read(a.stdin, f.configs...)
	if err != nil {
		return nil, err
	}
	set, err := kubernetes.Parse(inputs, data, kubernetes.Options{})
	if err != nil {
		return nil, kubeHint(err)
	}
	if len(set.Workloads) == 0 {
		return nil, hint(noPods([]string{file}), "a template of Azure has the ending .json")
	}
	job := &aciJob{
		path:   inputs[0].Path,
		insert: func(i int, policy string) error { return set.Workloads[i].SetAnnotation(aci.PodAnnotation, policy) },
		text:   set.Files[0].Text,
	}
	var problems kubernetes.Problems
	for _, w := range set.Workloads {
		g, warnings, err := aci.FromPod(set, w, aci.PodOptions{PinSecrets: f.pinSecure})
		var more kubernetes.Problems
		if errors.As(err, &more) {
			problems = append(problems, more...)
		}
		job.groups, job.warnings = append(job.groups, g), append(job.warnings, warnings...)
	}
	return job, problems.Err()
}

func (f *aciFlags) readTemplate(file string) (*aciJob, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the template: %w", err)
	}
	o := aci.TemplateOptions{AllowOpen: f.openValues, PinSecure: f.pinSecure}
	if f.parameters != "" {
		raw, err := os.ReadFile(f.parameters)
		if err != nil {
			return nil, fmt.Errorf("reading the parameters: %w", err)
		}
		o.Parameters = string(raw)
	}
	t, err := aci.ParseTemplate(string(text), o)
	if err != nil {
		err = fmt.Errorf("%s: %w", file, err)
		var open *aci.OpenError
		switch {
		case !errors.As(err, &open):
			return nil, err
		case open.Variable:
			return nil, hint(err, "give the parameter's value by --parameters FILE, or let variables be anything with --allow-open-values")
		}
		return nil, hint(err, "give the parameter's value by --parameters FILE")
	}
	return &aciJob{
		path: file, groups: t.Groups, warnings: t.Warnings,
		insert: func(i int, policy string) error { return t.Insert(t.Groups[i], policy) },
		text:   func() ([]byte, error) { return []byte(t.Text()), nil },
	}, nil
}
