package aci

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Image is what a policy says of an image.
type Image struct {
	Entrypoint, Cmd, Env         []string
	User, WorkingDir, StopSignal string
	// Layers are the dm-verity root hashes of the layers, the lowest first: those that recipe hcsshim-ext4 gives.
	Layers []string
}

// Images finds images. Names are as the containers have them.
type Images interface {
	Image(ctx context.Context, name string) (Image, error)
}

// Options say what a policy allows beyond its containers.
type Options struct {
	Fragments []Fragment
	// DenyStdio keeps the output of the containers from the host.
	DenyStdio bool
	// InsecureDebug lets the host run shells in the containers and read what the guest logs and dumps.
	InsecureDebug bool
	// Parallel is how many images are read at once. 0: 4.
	Parallel int
}

type envRule struct {
	Pattern  string `json:"pattern"`
	Strategy string `json:"strategy"`
	Required bool   `json:"required"`
}

type mountRule struct {
	Destination string   `json:"destination"`
	Options     []string `json:"options"`
	Source      string   `json:"source"`
	Type        string   `json:"type"`
}

type execRule struct {
	Command []string `json:"command"`
	Signals []int    `json:"signals"`
}

type idName struct {
	Pattern  string `json:"pattern"`
	Strategy string `json:"strategy"` // any, id, name, re2
}

type userRule struct {
	User   idName   `json:"user_idname"`
	Groups []idName `json:"group_idnames"`
	Umask  string   `json:"umask"`
}

// containerRule is a container of a policy.
type containerRule struct {
	ID                   string       `json:"id,omitempty"` // the image; for readers, not judged
	Name                 string       `json:"name"`         // likewise
	Command              []string     `json:"command"`
	EnvRules             []envRule    `json:"env_rules"`
	Layers               []string     `json:"layers"`
	Mounts               []mountRule  `json:"mounts"`
	ExecProcesses        []execRule   `json:"exec_processes"`
	Signals              []int        `json:"signals"`
	User                 userRule     `json:"user"`
	Capabilities         capabilities `json:"capabilities"`
	SeccompProfileSHA256 string       `json:"seccomp_profile_sha256"`
	AllowElevated        bool         `json:"allow_elevated"`
	WorkingDir           string       `json:"working_dir"`
	AllowStdioAccess     bool         `json:"allow_stdio_access"`
	NoNewPrivileges      bool         `json:"no_new_privileges"`
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var anyUser = userRule{User: idName{"", "any"}, Groups: []idName{{"", "any"}}, Umask: "0022"}

// pause is the container that holds the group's namespaces. The service brings it; its one layer is known.
func pause(stdio bool) containerRule {
	caps, _ := Security{}.capabilities() // nothing to add or drop, so nothing to get wrong
	return containerRule{
		Name:             "pause-container",
		Command:          []string{"/pause"},
		EnvRules:         []envRule{{defaultPath, "string", true}, {"TERM=xterm", "string", false}},
		Layers:           []string{"16b514057a06ad665f92c02863aca074fd5976c755d26bff16365299169e8415"},
		Mounts:           []mountRule{},
		ExecProcesses:    []execRule{},
		Signals:          []int{},
		User:             anyUser,
		Capabilities:     caps,
		WorkingDir:       "/",
		AllowStdioAccess: stdio,
	}
}

// Variables that the service sets itself.
var (
	serviceEnv = []envRule{
		{"TERM=xterm", "string", false},
		{"(?i)(FABRIC)_.+=.+", "re2", false},
		{"HOSTNAME=.+", "re2", false},
		{"T(E)?MP=.+", "re2", false},
		{"FabricPackageFileName=.+", "re2", false},
		{"HostedServiceName=.+", "re2", false},
		{"IDENTITY_API_VERSION=.+", "re2", false},
		{"IDENTITY_HEADER=.+", "re2", false},
		{"IDENTITY_SERVER_THUMBPRINT=.+", "re2", false},
		{"azurecontainerinstance_restarted_by=.+", "re2", false},
	}
	podEnv = []envRule{
		{"[A-Z0-9_]+_SERVICE_HOST=.+", "re2", false},
		{"[A-Z0-9_]+_SERVICE_PORT=.+", "re2", false},
		{"[A-Z0-9_]+_SERVICE_PORT_[A-Z0-9_]+=.+", "re2", false},
		{"[A-Z0-9_]+_PORT=.+", "re2", false},
		{"[A-Z0-9_]+_PORT_[0-9]+_TCP=.+", "re2", false},
		{"[A-Z0-9_]+_PORT_[0-9]+_TCP_PROTO=.+", "re2", false},
		{"[A-Z0-9_]+_PORT_[0-9]+_TCP_PORT=.+", "re2", false},
		{"[A-Z0-9_]+_PORT_[0-9]+_TCP_ADDR=.+", "re2", false},
	}
	identityEnv = []envRule{
		{"AZURE_CLIENT_ID=.+", "re2", false},
		{"AZURE_TENANT_ID=.+", "re2", false},
		{"AZURE_FEDERATED_TOKEN_FILE=.+", "re2", false},
		{"AZURE_AUTHORITY_HOST=.+", "re2", false},
	}
)

// Generate makes the policy of a group.
func Generate(ctx context.Context, g *Group, images Images, o Options) (*Policy, error) {
	p := &Policy{fragments: o.Fragments, debug: o.InsecureDebug, containers: make([]containerRule, len(g.Containers), len(g.Containers)+1)}
	if p.fragments == nil {
		p.fragments = []Fragment{}
	}
	faults := make([]error, len(g.Containers))
	var all errgroup.Group
	if all.SetLimit(4); o.Parallel > 0 {
		all.SetLimit(o.Parallel)
	}
	for i := range g.Containers {
		all.Go(func() error {
			c := &g.Containers[i]
			image, err := images.Image(ctx, c.Image)
			if err == nil {
				p.containers[i], err = c.rule(image, g.Pod, o)
			}
			if err != nil {
				faults[i] = fmt.Errorf("container %s: %w", c.Name, err)
			}
			return nil
		})
	}
	_ = all.Wait() // the faults are in the list
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("making the policy of %s: %w", g.Name, err)
	}
	p.containers = append(p.containers, pause(!o.DenyStdio))
	return p, nil
}

func (c *Container) rule(image Image, pod bool, o Options) (containerRule, error) {
	caps, err := c.Security.capabilities()
	if err != nil {
		return containerRule{}, err
	}
	if len(image.Layers) == 0 {
		return containerRule{}, fmt.Errorf("image %s has no layers", c.Image)
	}
	user, err := c.user(image.User)
	if err != nil {
		return containerRule{}, err
	}
	r := containerRule{
		ID: c.Image, Name: c.Name, Layers: image.Layers, User: user, Capabilities: caps,
		SeccompProfileSHA256: c.Security.SeccompSHA256, AllowElevated: c.Security.Privileged, NoNewPrivileges: c.Security.NoNewPrivileges,
		WorkingDir: c.WorkingDir, AllowStdioAccess: !o.DenyStdio, Mounts: c.mountRules(pod), ExecProcesses: []execRule{},
	}
	if r.WorkingDir == "" {
		r.WorkingDir = image.WorkingDir
	}
	if r.WorkingDir == "" {
		r.WorkingDir = "/"
	}
	if r.Command = c.command(image); len(r.Command) == 0 {
		return containerRule{}, fmt.Errorf("neither the container nor its image %s names a command", c.Image)
	}
	if r.EnvRules, err = c.envRules(image.Env, pod); err != nil {
		return containerRule{}, err
	}
	for _, command := range c.Exec {
		r.ExecProcesses = append(r.ExecProcesses, execRule{command, []int{}})
	}
	if o.InsecureDebug {
		r.ExecProcesses = append(r.ExecProcesses, execRule{[]string{"/bin/sh"}, []int{}}, execRule{[]string{"/bin/bash"}, []int{}})
	}
	r.ExecProcesses = slices.CompactFunc(r.ExecProcesses, func(a, b execRule) bool { return slices.Equal(a.Command, b.Command) })
	r.Signals, err = stopSignals(image.StopSignal)
	return r, err
}

func (c *Container) command(image Image) []string {
	switch {
	case len(c.Entrypoint) > 0:
		return slices.Concat(c.Entrypoint, c.Args)
	case len(c.Args) > 0:
		return slices.Concat(image.Entrypoint, c.Args)
	}
	return slices.Concat(image.Entrypoint, image.Cmd)
}

// stopSignals are those that end a container: the host may always end it.
func stopSignals(image string) ([]int, error) {
	out := []int{int(unix.SIGKILL), int(unix.SIGTERM)}
	if image == "" {
		return out, nil
	}
	n, err := strconv.Atoi(image)
	if err != nil {
		name := strings.ToUpper(image)
		if !strings.HasPrefix(name, "SIG") {
			name = "SIG" + name
		}
		n = int(unix.SignalNum(name))
		if strings.HasPrefix(name, "SIGRTMIN+") {
			if n, err = strconv.Atoi(name[len("SIGRTMIN+"):]); err == nil {
				n += 34
			}
		}
	}
	if n <= 0 || n > 64 {
		return nil, fmt.Errorf("the image's stop signal %.20q is none of Linux", image)
	}
	if !slices.Contains(out, n) {
		out = append(out, n)
	}
	return out, nil
}

// user binds the user of the process: what the container says, else what its image says, else root.
func (c *Container) user(image string) (userRule, error) {
	r := userRule{User: idName{"0", "id"}, Groups: []idName{{"", "any"}}, Umask: "0022"}
	name, group, _ := strings.Cut(image, ":")
	if name != "" {
		r.User = identity(name)
	}
	if group != "" {
		r.Groups = []idName{identity(group)}
	}
	if u := c.Security.User; u != nil {
		r.User = idName{strconv.FormatInt(*u, 10), "id"}
		r.Groups = []idName{{"", "any"}}
	}
	if g := c.Security.Group; g != nil {
		r.Groups = []idName{{strconv.FormatInt(*g, 10), "id"}}
	}
	if strings.Count(image, ":") > 1 {
		return r, fmt.Errorf("the image's user %.60q has more than one colon", image)
	}
	return r, nil
}

func identity(s string) idName {
	if _, err := strconv.ParseUint(s, 10, 32); err == nil {
		return idName{s, "id"}
	}
	return idName{s, "name"}
}

// envRules bind the environment. What the container and its image set is required, so that the host cannot leave it out.
func (c *Container) envRules(image []string, pod bool) ([]envRule, error) {
	var out []envRule
	own := map[string]bool{}
	for _, v := range c.Env {
		own[v.Name] = true
		if !v.Pattern {
			out = append(out, envRule{v.Name + "=" + v.Value, "string", true})
			continue
		}
		if _, err := regexp.Compile(v.Value); err != nil {
			return nil, fmt.Errorf("variable %s: %w", v.Name, err)
		}
		// Both anchors are written out: the framework adds them only where the text does not seem to have them, and a value
		// that ends in an escaped dollar sign would seem to.
		out = append(out, envRule{"^" + regexp.QuoteMeta(v.Name) + "=(?:" + v.Value + ")$", "re2", true})
	}
	for _, line := range image {
		name, _, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("the image's variable %.60q has no value", line)
		}
		if !own[name] {
			own[name] = true
			out = append(out, envRule{line, "string", true})
		}
	}
	if !own["PATH"] {
		out = append(out, envRule{defaultPath, "string", false}) // containerd adds it
	}
	rules := serviceEnv
	if pod {
		rules = slices.Concat(rules, podEnv)
	}
	if c.Security.WorkloadIdentityPod {
		rules = slices.Concat(rules, identityEnv)
	}
	for _, r := range rules {
		if !names(r, own) {
			out = append(out, r)
		}
	}
	return out, nil
}

// names reports whether a rule of the service admits another value of a variable that the container or its image sets. Such a
// rule is left out, or the host could set the variable a second time.
func names(r envRule, own map[string]bool) bool {
	name, _, _ := strings.Cut(r.Pattern, "=")
	if r.Strategy == "string" {
		return own[name]
	}
	re := regexp.MustCompile("^(?:" + name + ")$")
	for v := range own {
		if re.MatchString(v) {
			return true
		}
	}
	return false
}

func (c *Container) mountRules(pod bool) []mountRule {
	out := []mountRule{}
	add := func(source, to string, readOnly bool) {
		rw := "rw"
		if readOnly {
			rw = "ro"
		}
		if !slices.ContainsFunc(out, func(m mountRule) bool { return m.Destination == to }) {
			out = append(out, mountRule{to, []string{"rbind", "rshared", rw}, source, "bind"})
		}
	}
	for _, m := range c.Mounts {
		add(volumeSources[m.Kind], m.Path, m.ReadOnly)
	}
	if !pod {
		add("sandbox:///tmp/atlas/resolvconf/.+", "/etc/resolv.conf", false)
		return out
	}
	source := volumeSources["emptyDir"]
	for _, to := range []string{"/etc/resolv.conf", "/etc/hosts", "/dev/termination-log", "/etc/hostname"} {
		add(source, to, false)
	}
	add(source, "/var/run/secrets/kubernetes.io/serviceaccount", true)
	if c.Security.WorkloadIdentityPod {
		add(source, "/var/run/secrets/azure/tokens", true)
	}
	if c.Security.Privileged {
		add(source, "/sys/fs/cgroup", false)
		add(source, "/sys", false)
	}
	return out
}
