package genpolicy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/author/kubernetes"
)

// Tags says what happens to an image that the manifest names by tag.
type Tags int

const (
	PinTags    Tags = iota // the policy wants the digest; Result.Pins says how to write it into the manifest
	AllowTags              // the guest may pull by the tag, whatever it names then
	RefuseTags             // a problem
)

// Options of Generate.
type Options struct {
	Settings *Settings
	Rules    string // text of the rules
	Images   imagesource.Source
	Tags     Tags
	// Namespace of manifests that name none. Empty: any, the same for the whole pod.
	Namespace string
	// AnyOrder does not hold init containers to run before the others.
	AnyOrder bool
	// AnyFiles lets the host choose the content of ConfigMaps and Secrets even if it is known.
	AnyFiles bool
	// Fragments are those that the guest may load.
	Fragments []Fragment
	// ForwardPorts allows the forwarding of connections to the ports that containers declare.
	ForwardPorts bool
}

// Result is what one workload needs.
type Result struct {
	Policy   string
	Pins     []Pin
	Warnings []kubernetes.Problem
	Secrets  bool // the policy has values of Secrets in clear
}

// Pin is an image of the manifest and the reference with its digest.
type Pin struct {
	Container *kubernetes.Container
	Image     string
}

// maxLine is the longest line that policy engines accept, and maxTexts how much of a policy they take, in bytes.
const (
	maxLine  = 64 << 10
	maxTexts = 16 << 20
)

// generator makes the policy of one workload.
type generator struct {
	set      *kubernetes.Set
	w        *kubernetes.Workload
	o        Options
	s        *Settings
	images   map[string]*imagesource.Image
	sealed   map[string]bool // images that were found to be sealed where that cannot be
	cluster  []clusterVariable
	texts    int // bytes of variables and arguments so far; see take
	problems kubernetes.Problems
	result   Result
}

// take counts the bytes of a variable or an argument, and says whether there is room for them: a short manifest can name long texts any number of
// times. That there is none is a problem once.
func (g *generator) take(at kubernetes.At, path string, n int) bool {
	if g.texts > maxTexts {
		return false
	}
	if g.texts += n; g.texts > maxTexts {
		g.fail(at, path, "the pod's variables and arguments have more than %d bytes up to here, which is more than a policy can have", maxTexts)
		return false
	}
	return true
}

func (g *generator) fail(at kubernetes.At, path, format string, args ...any) {
	g.problems = append(g.problems, g.w.Problem(at.Node, path, format, args...))
}

func (g *generator) warn(at kubernetes.At, path, format string, args ...any) {
	g.result.Warnings = append(g.result.Warnings, g.w.Problem(at.Node, path, format, args...))
}

// Generate writes the policy that admits the pods of w. Everything that stands in the way is in the error, of type
// kubernetes.Problems.
func Generate(ctx context.Context, set *kubernetes.Set, w *kubernetes.Workload, o Options) (*Result, error) {
	g := &generator{set: set, w: w, o: o, s: o.Settings, sealed: map[string]bool{}}
	data := policyData{
		Common: g.s.Common, Sandbox: g.s.Sandbox, Requests: maps.Clone(g.s.Requests), Cluster: g.s.Cluster,
		Devices:   map[string]any{"vfio": map[string]any{"device_path": g.s.Devices.VFIO.DevicePath}},
		Fragments: slices.Concat(g.s.Fragments, o.Fragments),
		Cloister:  ownData{Version: 1, EnforceOrder: !o.AnyOrder, BindFiles: !o.AnyFiles},
	}
	var err error
	if g.cluster, err = g.s.clusterVariables(); err != nil {
		return nil, kubernetes.Problems{w.Problem(nil, "", "settings: %v", err)}
	}
	g.checkPod()
	g.warnRuntime()
	if err := g.fetch(ctx); err != nil {
		return nil, err
	}
	data.Containers = g.containers()
	if err := g.problems.Err(); err != nil {
		return &g.result, err
	}
	g.requests(&data)
	text, err := policyText(o.Rules, data)
	if err != nil {
		return &g.result, kubernetes.Problems{w.Problem(nil, "", "%v", err)}
	}
	g.result.Policy = text
	return &g.result, nil
}

func policyText(rules string, data policyData) (string, error) {
	var buf bytes.Buffer
	buf.WriteString(strings.TrimRight(rules, "\n"))
	buf.WriteString("\n\npolicy_data := ")
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(data); err != nil {
		return "", err
	}
	for line := range bytes.Lines(buf.Bytes()) {
		if len(line) > maxLine {
			return "", fmt.Errorf("a value of %d bytes exceeds the %d that policies can have; is there a long variable or argument", len(line), maxLine)
		}
	}
	return buf.String(), nil
}

// requests adds what depends on the workload to the settings of requests.
func (g *generator) requests(data *policyData) {
	if !g.o.ForwardPorts {
		return
	}
	ports := []int64{}
	for _, c := range slices.Concat(g.w.Spec.InitContainers, g.w.Spec.Containers) {
		for _, p := range c.Ports {
			ports = append(ports, p.ContainerPort)
		}
	}
	slices.Sort(ports)
	data.Requests["PortForwardRequest"] = map[string]any{"allowed_ports": slices.Compact(ports)}
}

// checkPod finds what no policy can allow.
func (g *generator) checkPod() {
	spec := &g.w.Spec
	if len(spec.Containers) == 0 {
		g.fail(spec.At, "containers", "missing")
	}
	if spec.HostUsers != nil && !*spec.HostUsers {
		g.fail(spec.At, "hostUsers", "user namespaces are not supported; the guest separates users already")
	}
	if spec.OS.Name != "" && spec.OS.Name != "linux" {
		g.fail(spec.OS.At, "os.name", "guests are linux")
	}
	names := map[string]bool{}
	for path, c := range g.each() {
		switch {
		case c.Name == "":
			g.fail(c.At, path+".name", "missing")
		case names[c.Name]:
			g.fail(c.At, path+".name", "%q is used twice", c.Name)
		}
		names[c.Name] = true
		if c.Image == "" {
			g.fail(c.At, path+".image", "missing")
		}
		if p := c.Security.ProcMount; p != "" && p != "Default" {
			g.fail(c.Security.At, path+".securityContext.procMount", "%q is not supported", p)
		}
		g.checkRestarts(path, c)
	}
	volumes := map[string]bool{}
	for i, v := range spec.Volumes {
		path := fmt.Sprintf("volumes[%d]", i)
		if v.Name == "" || volumes[v.Name] {
			g.fail(v.At, path+".name", "%q is missing or used twice", v.Name)
		}
		volumes[v.Name] = true
	}
}

// each visits init containers and containers in the order of the pod.
func (g *generator) each() func(yield func(string, *kubernetes.Container) bool) {
	return func(yield func(string, *kubernetes.Container) bool) {
		for i := range g.w.Spec.InitContainers {
			if !yield(fmt.Sprintf("initContainers[%d]", i), &g.w.Spec.InitContainers[i]) {
				return
			}
		}
		for i := range g.w.Spec.Containers {
			if !yield(fmt.Sprintf("containers[%d]", i), &g.w.Spec.Containers[i]) {
				return
			}
		}
	}
}

// containers are the entries: the pause container, init containers from the last to the first, then containers.
func (g *generator) containers() []container {
	out := []container{g.pause()}
	order := 1
	var inits, rest []container
	for path, c := range g.each() {
		isInit := strings.HasPrefix(path, "init")
		entry := g.container(path, c)
		entry.Kind = kindContainer
		switch {
		case isInit && c.RestartPolicy == "Always":
			entry.Kind, entry.MustRun, entry.Restarts = kindSidecar, true, true
		case isInit:
			entry.Kind, entry.MustRun, entry.Restarts = kindInit, true, g.restarts(c)
		default:
			entry.Restarts = g.restarts(c)
		}
		entry.Order = order
		if isInit {
			order++
			inits = append(inits, entry)
		} else {
			rest = append(rest, entry)
		}
	}
	slices.Reverse(inits)
	return slices.Concat(out, inits, rest)
}

// restarts says whether the kubelet can run a container again: as the container says, else as the pod does, and by the rules for exit codes.
func (g *generator) restarts(c *kubernetes.Container) bool {
	policy := c.RestartPolicy
	if policy == "" {
		policy = g.w.Spec.RestartPolicy
	}
	return policy != "Never" || len(c.RestartRules) > 0 || g.restartsAll()
}

// restartsAll says whether the end of some container makes the kubelet run the whole pod again in its sandbox.
func (g *generator) restartsAll() bool {
	for _, c := range g.each() {
		if slices.ContainsFunc(c.RestartRules, func(r kubernetes.RestartRule) bool { return r.Action == restartAll }) {
			return true
		}
	}
	return false
}

const restartAll = "RestartAllContainers"

// checkRestarts refuses that init containers run again after they have succeeded, which the rules do not allow where they keep the order.
func (g *generator) checkRestarts(path string, c *kubernetes.Container) {
	ordered := slices.ContainsFunc(g.w.Spec.InitContainers, func(c kubernetes.Container) bool { return c.RestartPolicy != "Always" })
	if g.o.AnyOrder || !ordered {
		return
	}
	for i, r := range c.RestartRules {
		if r.Action == restartAll {
			g.fail(c.At, fmt.Sprintf("%s.restartPolicyRules[%d].action", path, i), "%s runs init containers again, and the policy lets none that has succeeded do so; generate with --any-order", restartAll)
		}
	}
}

// imagesAtOnce bounds the images that are asked for at the same time: most of it is waiting for registries. How many layers are read at
// once, the source bounds.
const imagesAtOnce = 16

// fetch gets all images of the pod; those that fail are problems of their containers.
func (g *generator) fetch(ctx context.Context) error {
	g.images = map[string]*imagesource.Image{}
	need := imagesource.Need{Users: true, Roots: g.s.HostLayers()}
	type job struct {
		reference string
		at        kubernetes.At
		path      string
	}
	var jobs []job
	if g.s.cluster.PauseConfig == nil {
		jobs = append(jobs, job{g.s.cluster.PauseImage, g.w.Spec.At, ""})
	}
	for path, c := range g.each() {
		if c.Image != "" {
			jobs = append(jobs, job{c.Image, c.At, path + ".image"})
		}
	}
	type answer struct {
		img *imagesource.Image
		err error
	}
	answers := make([]answer, len(jobs))
	done := make(chan int)
	limit := make(chan struct{}, imagesAtOnce)
	started := map[string]int{}
	running := 0
	for i, j := range jobs {
		if _, ok := started[j.reference]; ok {
			continue
		}
		started[j.reference] = i
		running++
		go func() {
			limit <- struct{}{}
			img, err := g.o.Images.Image(ctx, j.reference, need)
			<-limit
			answers[i] = answer{img, err}
			done <- i
		}()
	}
	for ; running > 0; running-- {
		<-done
	}
	for _, j := range jobs {
		a := answers[started[j.reference]]
		if a.err != nil {
			if ctx.Err() != nil {
				return errors.Join(ctx.Err(), a.err)
			}
			g.fail(j.at, j.path, "%w", a.err)
			continue
		}
		g.images[j.reference] = a.img
	}
	return nil
}
