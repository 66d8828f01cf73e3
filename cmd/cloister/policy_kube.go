package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/cloister/cloister/author/genpolicy"
	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
	"github.com/cloister/cloister/internal/paths"
	"github.com/cloister/cloister/layer"
	"github.com/cloister/cloister/wire/initdata"
)

// kubeFlags say how `policy generate` treats manifests of Kubernetes.
type kubeFlags struct {
	settings, rules, initdata string
	raw, base64, inPlace      bool
	runtimeClasses            []string
	arch, layers, emptyDir    string
	recipe                    string
	tags, namespace           string
	cache                     string
	noCache                   bool
	sources                   []string
	allowLogs, forward        bool
	anyOrder, anyFiles        bool
	ignoreUnknown             bool
	fragments, direct         []string
}

func (f *kubeFlags) add(c *cobra.Command) {
	f.flags(c.Flags())
}

// given names the flags that only manifests of Kubernetes have a use for, of those that were given.
func (f *kubeFlags) given(c *cobra.Command) []string {
	var names []string
	known := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(kubeFlags).flags(known)
	known.VisitAll(func(flag *pflag.Flag) {
		if c.Flags().Changed(flag.Name) {
			names = append(names, "--"+flag.Name)
		}
	})
	return names
}

func (f *kubeFlags) flags(p *pflag.FlagSet) {
	p.StringVar(&f.settings, "settings", "", "settings of nodes and requests: a genpolicy-settings.json, or a directory with it and patches")
	p.StringVar(&f.rules, "rules", "", "take the rules from this file instead of Cloister's")
	p.StringVar(&f.initdata, "initdata", "", "put the policy into this initdata document, which may have aa.toml and cdh.toml")
	p.BoolVar(&f.raw, "raw", false, "print the policy instead of the manifests")
	p.BoolVar(&f.base64, "base64", false, "print the value of the initdata annotation instead of the manifests")
	p.BoolVar(&f.inPlace, "in-place", false, "change the files instead of printing them")
	p.StringArrayVar(&f.runtimeClasses, "runtime-class", nil, "only for pods whose runtimeClassName starts with this (repeatable; default: all)")
	p.StringVar(&f.arch, "arch", "amd64", "architecture of the guests: amd64, arm64, s390x, ...")
	p.StringVar(&f.layers, "layers", "", "where image layers come from: guest (pulled there) or host (block devices bound by their hashes); default: as the settings say")
	p.StringVar(&f.recipe, "layer-recipe", "", "how the layers of --layers host are made: cloister-erofs-1 (default) or containerd-erofs, which needs mkfs.erofs")
	p.StringVar(&f.emptyDir, "emptydir", "", "what an emptyDir is: block-encrypted, block-plain, shared-fs or guest (its memory); default: as the settings say")
	p.StringVar(&f.tags, "tags", "pin", "images named by tag: pin (write the digest into the manifest), allow (not bound to content) or refuse")
	p.StringVar(&f.namespace, "namespace", "", "namespace of manifests that name none; default: any")
	p.StringVar(&f.cache, "cache", "", "folder that keeps what was found in layers; default: layers in the user's cache folder")
	p.BoolVar(&f.noCache, "no-cache", false, "keep nothing, and use nothing that was kept")
	p.StringArrayVar(&f.sources, "image-source", nil, "registry, oci:DIR, archive:FILE or containerd[:SOCKET[,NAMESPACE]] (repeatable, tried in order; default: registry)")
	p.StringArrayVar(&f.fragments, "fragment", nil, "JSON file that declares a signed fragment to accept, as 'cloister policy fragment inspect --declare guest' prints it (repeatable)")
	p.StringArrayVar(&f.direct, "direct-volume", nil, "JSON about volumes whose disk the guest gets, as in direct_volumes of the settings, and before those (repeatable)")
	p.BoolVar(&f.allowLogs, "allow-logs", false, "hand the containers' output and termination messages to the host")
	p.BoolVar(&f.forward, "allow-port-forward", false, "let the host forward connections to the ports that containers declare")
	p.BoolVar(&f.anyOrder, "any-order", false, "do not hold init containers to run before the others")
	p.BoolVar(&f.anyFiles, "any-files", false, "do not bind the content of ConfigMaps and Secrets: they may change while the pod runs")
	p.BoolVar(&f.ignoreUnknown, "ignore-unknown-fields", false, "accept fields of pods that are not known")
}

// options makes the options of the generator, without its images.
func (f *kubeFlags) options(rf *policyFlags) (genpolicy.Options, error) {
	o := genpolicy.Options{Rules: genpolicy.Rules(), Namespace: f.namespace, AnyOrder: f.anyOrder, AnyFiles: f.anyFiles, ForwardPorts: f.forward}
	switch f.tags {
	case "pin":
	case "allow":
		o.Tags = genpolicy.AllowTags
	case "refuse":
		o.Tags = genpolicy.RefuseTags
	default:
		return o, usageError{fmt.Errorf("--tags %q: want pin, allow or refuse", f.tags)}
	}
	for _, name := range f.fragments {
		d, err := readDeclaration(name)
		if err != nil {
			return o, err
		}
		o.Fragments = append(o.Fragments, d)
	}
	if f.rules != "" {
		text, err := readFile(f.rules)
		if err != nil {
			return o, fmt.Errorf("reading the rules: %w", err)
		}
		o.Rules = string(text)
		if err := parsePolicy(o.Rules); err != nil {
			return o, fmt.Errorf("reading the rules: %s: %w", f.rules, err)
		}
	}
	var err error
	if f.settings == "" {
		o.Settings, err = genpolicy.DefaultSettings()
	} else {
		o.Settings, err = genpolicy.LoadSettings(f.settings)
	}
	if err != nil {
		return o, err
	}
	switch f.layers {
	case "":
	case "host":
		o.Settings.SetLayers(genpolicy.LayersVerity)
	case "guest":
		o.Settings.SetLayers(genpolicy.LayersNone)
	default:
		return o, usageError{fmt.Errorf("--layers %q: want host or guest", f.layers)}
	}
	if f.emptyDir != "" {
		if err := o.Settings.SetEmptyDir(f.emptyDir); err != nil {
			return o, usageError{fmt.Errorf("--emptydir: %w", err)}
		}
	}
	for _, d := range slices.Backward(f.direct) { // each goes before what is there
		if err := o.Settings.AddDirectVolume(d); err != nil {
			return o, hint(usageError{fmt.Errorf("--direct-volume %s: %w", printable(d), err)}, `such as {"claim": "data", "fstype": "ext4"}: docs/reference/policy-generate.md has all members`)
		}
	}
	if f.allowLogs {
		o.Settings.Allow("ReadStreamRequest", "GetDiagnosticDataRequest")
	}
	if rf.allowExecStdin {
		o.Settings.Allow("WriteStreamRequest", "CloseStdinRequest")
	}
	for _, c := range rf.allowExec {
		o.Settings.AllowExec(strings.Fields(c))
	}
	return o, nil
}

// layerRecipes are those whose layers the container runtime attaches.
var layerRecipes = []string{string(layer.Cloister), string(layer.Containerd)}

// images opens the places that images come from.
func (f *kubeFlags) images(pf *podFlags, hostLayers bool) (*imagesource.Images, error) {
	switch {
	case f.recipe != "" && !slices.Contains(layerRecipes, f.recipe):
		return nil, usageError{fmt.Errorf("--layer-recipe %q: want %s", f.recipe, strings.Join(layerRecipes, " or "))}
	case f.recipe != "" && !hostLayers:
		return nil, usageError{errors.New("--layer-recipe is for layers of the host: --layers host")}
	}
	o := imagesource.Options{From: f.sources, Architecture: f.arch, Recipe: layer.Recipe(f.recipe),
		Registry: imagesource.RegistryOptions{Insecure: pf.insecure}, Cache: f.cache}
	if o.Cache == "" {
		if dir, err := os.UserCacheDir(); err == nil {
			o.Cache = filepath.Join(dir, "cloister", "layers")
		}
	}
	if f.noCache {
		o.Cache = ""
	}
	for _, from := range f.sources {
		if err := imagesource.CheckSource(from); err != nil {
			return nil, usageError{fmt.Errorf("--image-source: %w", err)}
		}
	}
	return imagesource.New(o)
}

// generate makes the policies of all workloads in the named files.
func (f *kubeFlags) generate(c *cobra.Command, a *app, pf *podFlags, rf *policyFlags, out string, names []string) error {
	if f.inPlace && (f.raw || f.base64 || out != "" || slices.Contains(names, "-")) {
		return usageError{errors.New("--in-place goes with files, and without --raw, --base64 and --output")}
	}
	if len(pf.guestRegistry) > 0 || rf.denyLogs {
		return usageError{errors.New("--guest-registry and --deny-logs are for --for run")}
	}
	o, err := f.options(rf)
	if err != nil {
		return err
	}
	images, err := f.images(pf, o.Settings.HostLayers())
	if err != nil {
		return err
	}
	defer images.Close()
	o.Images = images
	inputs, err := kubernetes.Read(a.stdin, names...)
	if err != nil {
		return err
	}
	data, err := kubernetes.Read(a.stdin, pf.configs...)
	if err != nil {
		return err
	}
	set, err := kubernetes.Parse(inputs, data, kubernetes.Options{RuntimeClasses: f.runtimeClasses, IgnoreUnknown: f.ignoreUnknown})
	var problems kubernetes.Problems
	if err != nil && !errors.As(err, &problems) {
		return err
	}
	if len(problems) == 0 && len(set.Workloads) == 0 {
		return nothingSelected(names, set.Passed, f.runtimeClasses)
	}
	var base *initdata.Document
	if f.initdata != "" {
		text, err := readFile(f.initdata)
		if err != nil {
			return fmt.Errorf("reading the initdata: %w", err)
		}
		if base, err = initdata.Parse(text); err != nil {
			return fmt.Errorf("%s: %w", f.initdata, err)
		}
	}
	results, more, err := generateAll(c.Context(), set, o)
	if err != nil {
		return err
	}
	for _, r := range results {
		for _, w := range r.Warnings {
			fmt.Fprintf(a.stderr, "warning: %s\n", w)
		}
	}
	if err := append(problems, more...).Err(); err != nil {
		if errors.Is(err, kubernetes.ErrUnknownField) {
			return hint(err, "fields that are spelled right and do not matter to the guest are accepted with --ignore-unknown-fields")
		}
		return kubeHint(templateHint(err, inputs))
	}
	return f.deliver(a, set, results, base, out)
}

// maxPolicies bounds the policies of one run together, in bytes.
const maxPolicies = 512 << 20

// generateAll makes the policies of all workloads, several at a time.
func generateAll(ctx context.Context, set *kubernetes.Set, o genpolicy.Options) ([]*genpolicy.Result, kubernetes.Problems, error) {
	results := make([]*genpolicy.Result, len(set.Workloads))
	faults := make([]error, len(set.Workloads))
	var group errgroup.Group
	group.SetLimit(8)
	var size atomic.Int64
	for i, w := range set.Workloads {
		group.Go(func() error {
			if size.Load() > maxPolicies {
				return fmt.Errorf("the policies of these manifests have more than %d MiB\nhint: generate for fewer of them at a time", maxPolicies>>20)
			}
			if results[i], faults[i] = genpolicy.Generate(ctx, set, w, o); results[i] != nil {
				size.Add(int64(len(results[i].Policy)))
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	var problems kubernetes.Problems
	for _, err := range faults {
		var ps kubernetes.Problems
		if err != nil && !errors.As(err, &ps) {
			return nil, nil, err
		}
		problems = append(problems, ps...)
	}
	return results, problems, nil
}

// deliver writes what was asked for.
func (f *kubeFlags) deliver(a *app, set *kubernetes.Set, results []*genpolicy.Result, base *initdata.Document, out string) error {
	mode := os.FileMode(0o644)
	var text bytes.Buffer
	for i, w := range set.Workloads {
		r := results[i]
		if r.Secrets {
			mode = privateMode
			fmt.Fprintf(a.stderr, "warning: %s: the policy of %s holds values of Secrets in clear, because its variables or arguments do\n", w.File, w.Object())
		}
		doc, err := baseOf(w, base)
		if err != nil {
			return err
		}
		annotation, err := kubeAnnotation(r.Policy, doc)
		if err != nil {
			return fmt.Errorf("%s: %w", w.Object(), err)
		}
		if f.raw || f.base64 {
			for _, p := range r.Pins {
				fmt.Fprintf(a.stderr, "warning: %s: container %s: the policy wants the image by its digest; write %s\n", w.Object(), p.Container.Name, p.Image)
			}
		}
		if f.raw {
			if len(results) > 1 {
				fmt.Fprintf(&text, "# %s of %s\n", w.Object(), w.File)
			}
			text.WriteString(r.Policy)
		}
		if f.base64 {
			text.WriteString(annotation + "\n")
		}
		if warning := tooLarge(w, annotation); warning != "" {
			fmt.Fprintf(a.stderr, "warning: %s: %s\n", w.File, warning)
		}
		if err := w.SetAnnotation(initdata.Annotation, annotation); err != nil {
			return err
		}
		for _, p := range r.Pins {
			if err := w.SetImage(p.Container, p.Image); err != nil {
				return hint(err, "write the digest by hand, or use --tags allow")
			}
		}
	}
	if f.raw || f.base64 {
		return a.writeMode(out, text.Bytes(), mode)
	}
	changed := make([][]byte, len(set.Files))
	for i, file := range set.Files {
		var err error
		if changed[i], err = file.Text(); err != nil {
			return err
		}
	}
	if f.inPlace {
		return rewrite(set.Files, changed)
	}
	for i, c := range changed {
		if i > 0 && !bytes.HasPrefix(c, []byte("---")) {
			text.WriteString("---\n")
		}
		text.Write(c)
		if !bytes.HasSuffix(c, []byte("\n")) {
			text.WriteByte('\n')
		}
	}
	return a.writeMode(out, text.Bytes(), mode)
}

// shortAnnotation is Cloister's own name of the initdata annotation.
const shortAnnotation = "cloister.dev/initdata"

// baseOf is the document that the policy of a workload is put into: the one that was given, or what the workload has from before.
func baseOf(w *kubernetes.Workload, base *initdata.Document) (*initdata.Document, error) {
	if w.Template.Annotations[shortAnnotation] != "" {
		return nil, hint(fmt.Errorf("%s: %s has the annotation %s, and %s beside it would be another initdata", w.File, w.Object(), shortAnnotation, initdata.Annotation),
			"rename it to %s: its other members are kept", initdata.Annotation)
	}
	value := w.Template.Annotations[initdata.Annotation]
	if base != nil || value == "" {
		return base, nil
	}
	text, err := initdata.DecodeAnnotation(value)
	if err != nil {
		return nil, hint(fmt.Errorf("%s: the annotation %s of %s: %w", w.File, initdata.Annotation, w.Object(), err), "remove it, or give the document by --initdata")
	}
	doc, err := initdata.Parse(text)
	if err != nil {
		return nil, hint(fmt.Errorf("%s: the annotation %s of %s: %w", w.File, initdata.Annotation, w.Object(), err), "remove it, or give the document by --initdata")
	}
	return doc, nil
}

// kubeAnnotation is the value of the initdata annotation for a policy.
func kubeAnnotation(text string, base *initdata.Document) (string, error) {
	doc := initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{}}
	if base != nil {
		doc.Algorithm = base.Algorithm
		for k, v := range base.Data {
			doc.Data[k] = v
		}
	}
	doc.Data[initdata.KeyPolicy] = text
	raw, err := doc.Marshal()
	if err != nil {
		return "", err
	}
	return initdata.EncodeAnnotation(raw), nil
}

// rewrite changes files, each at once and with the mode it has.
func rewrite(files []*kubernetes.File, changed [][]byte) error {
	for i, f := range files {
		if bytes.Equal(f.Data, changed[i]) {
			continue
		}
		if err := rewriteFile(f.Path, changed[i]); err != nil {
			return err
		}
	}
	return nil
}

func rewriteFile(path string, data []byte) error {
	name, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("changing %s: %w", path, err)
	}
	info, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("changing %s: %w", path, err)
	}
	return paths.WriteFile(name, data, info.Mode().Perm())
}
