// Package policy writes the policy of a pod: fixed rules (rules.rego) followed
// by the data of one pod, the exact requests that its launch plan will make.
//
// Text = rules + `policy_data := ` + JSON. The JSON holds each request in the
// shape of package wire/policyinput, so a rule compares like with like. The
// same plan always gives the same text; the text is measured as part of initdata.
package policy

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cloister/cloister/wire/agent"
	"github.com/cloister/cloister/wire/launch"
	"github.com/cloister/cloister/wire/policyinput"
)

//go:embed rules.rego
var rules string

// Rules is the text of the rules without data.
func Rules() string { return rules }

// Options say what beyond the plan a pod may be asked to do.
type Options struct {
	// AllowExec lists commands (full argument vectors) that may be run in any
	// container, with or without a terminal.
	AllowExec [][]string
	// AllowExecStdin lets the host write to the standard input of such commands.
	AllowExecStdin bool
	// ExecCommands lists, per container name, the commands of probes and hooks.
	ExecCommands map[string][][]string
	// Signals lists, per container name, signals allowed in addition to
	// SIGINT, SIGKILL and SIGTERM.
	Signals map[string][]uint32
	// DenyLogs refuses to hand the output of the containers to the host.
	DenyLogs bool
}

// baseSignals are what any container may be sent: SIGINT, SIGKILL, SIGTERM.
var baseSignals = []uint32{2, 9, 15}

// bundleID is the placeholder of the rules for the id of the container being created.
const bundleID = "$(bundle-id)"

// maxLine is the longest line that policy engines accept.
const maxLine = 64 << 10

const guestPullDriver = "image_guest_pull"

var (
	containerID = regexp.MustCompile(`^[0-9a-f]{64}$`)
	pinnedImage = regexp.MustCompile(`^[^@\s]+@sha256:[0-9a-f]{64}$`)
)

type document struct {
	Containers      []container     `json:"containers"`
	Files           map[string]any  `json:"files"`
	Sandbox         sandbox         `json:"sandbox"`
	RequestDefaults requestDefaults `json:"request_defaults"`
}

type sandbox struct {
	Request any `json:"request"`
}

// container is one entry of policy_data.containers: the members of its
// CreateContainerRequest plus what the rules need to know about it.
type container struct {
	Name         string     `json:"name"`
	ContainerID  string     `json:"container_id"`
	Init         bool       `json:"init"`
	Restarts     bool       `json:"restarts"`
	Stdin        bool       `json:"stdin"`
	Signals      []uint32   `json:"signals"`
	ExecCommands [][]string `json:"exec_commands"`
	Files        []string   `json:"files"` // that its mounts show
	OCI          any        `json:"OCI"`
	Storages     any        `json:"storages"`
	Devices      any        `json:"devices"`
	SharedMounts any        `json:"shared_mounts"`
	StringUser   any        `json:"string_user"`
	SandboxPidns any        `json:"sandbox_pidns"`
	StdinPort    any        `json:"stdin_port"`
	StdoutPort   any        `json:"stdout_port"`
	StderrPort   any        `json:"stderr_port"`
}

// Generate writes the policy that admits exactly the requests of plan.
func Generate(plan *launch.Plan, opts Options) (string, error) {
	doc, err := build(plan, opts)
	if err != nil {
		return "", fmt.Errorf("generating policy: %w", err)
	}
	var buf bytes.Buffer
	buf.WriteString(rules)
	buf.WriteString("\npolicy_data := ")
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return "", fmt.Errorf("generating policy: %w", err)
	}
	for line := range bytes.Lines(buf.Bytes()) {
		if len(line) > maxLine {
			return "", fmt.Errorf("generating policy: a value of %d bytes exceeds the limit of %d; is there a long environment variable or argument?", len(line), maxLine)
		}
	}
	return buf.String(), nil
}

func build(plan *launch.Plan, opts Options) (*document, error) {
	var problems []error
	doc := &document{Containers: []container{}, Files: map[string]any{}, RequestDefaults: defaults(opts)}
	if plan.Sandbox == nil {
		return nil, errors.New("the plan has no sandbox request")
	}
	var err error
	if doc.Sandbox.Request, err = policyinput.Value(plan.Sandbox); err != nil {
		return nil, err
	}
	for i, f := range plan.Files {
		if err := addFile(doc, f.Request); err != nil {
			problems = append(problems, fmt.Errorf("file %d: %w", i, err))
		}
	}
	names, ids := map[string]bool{}, map[string]bool{}
	for _, c := range plan.Containers {
		if names[c.Name] {
			problems = append(problems, fmt.Errorf("container %q: the name is used twice", c.Name))
			continue
		}
		names[c.Name] = true
		entry, err := containerEntry(c, opts)
		entry.Files = filesOf(plan, c)
		if err != nil {
			problems = append(problems, fmt.Errorf("container %q: %w", c.Name, err))
			continue
		}
		if ids[entry.ContainerID] {
			problems = append(problems, fmt.Errorf("container %q: the id %s is used twice", c.Name, entry.ContainerID))
		}
		ids[entry.ContainerID] = true
		doc.Containers = append(doc.Containers, entry)
	}
	for _, name := range unknownNames(opts, names) {
		problems = append(problems, fmt.Errorf("options name container %q, which the plan does not have", name))
	}
	for i, argv := range opts.AllowExec {
		if len(argv) == 0 || argv[0] == "" {
			problems = append(problems, fmt.Errorf("allowed exec command %d is empty", i))
		}
	}
	return doc, errors.Join(problems...)
}

func addFile(doc *document, req *agent.CopyFileRequest) error {
	if req == nil {
		return errors.New("no request")
	}
	if req.GetOffset() != 0 || (req.GetFileMode()&0o170000 == 0o100000 && int64(len(req.GetData())) != req.GetFileSize()) {
		return fmt.Errorf("%s: the policy binds whole files only, the request carries %d of %d bytes at offset %d",
			req.GetPath(), len(req.GetData()), req.GetFileSize(), req.GetOffset())
	}
	if _, ok := doc.Files[req.GetPath()]; ok {
		return fmt.Errorf("%s: the path is used twice", req.GetPath())
	}
	v, err := policyinput.Value(req)
	if err != nil {
		return err
	}
	doc.Files[req.GetPath()] = v
	return nil
}

func containerEntry(c launch.Container, opts Options) (container, error) {
	id := c.Create.GetContainerId()
	switch {
	case c.Create == nil || c.Create.OCI == nil || c.Create.OCI.Process == nil || c.Create.OCI.Root == nil || c.Create.OCI.Linux == nil:
		return container{}, errors.New("the create request has no complete OCI spec")
	case !containerID.MatchString(id):
		return container{}, fmt.Errorf("container id %q is not 64 hexadecimal digits", id)
	}
	if err := checkImageBinding(c.Create.Storages); err != nil {
		return container{}, err
	}
	v, err := policyinput.Value(c.Create)
	if err != nil {
		return container{}, err
	}
	req := v.(map[string]any)
	withPlaceholder(req, id)
	return container{
		Name:         c.Name,
		ContainerID:  id,
		Init:         c.Init,
		Restarts:     c.RestartPolicy == launch.RestartAlways || c.RestartPolicy == launch.RestartOnFailure,
		Stdin:        c.Stdin,
		Signals:      signals(opts.Signals[c.Name]),
		ExecCommands: append([][]string{}, opts.ExecCommands[c.Name]...),
		OCI:          req["OCI"],
		Storages:     req["storages"],
		Devices:      req["devices"],
		SharedMounts: req["shared_mounts"],
		StringUser:   req["string_user"],
		SandboxPidns: req["sandbox_pidns"],
		StdinPort:    req["stdin_port"],
		StdoutPort:   req["stdout_port"],
		StderrPort:   req["stderr_port"],
	}, nil
}

// filesOf lists the paths of the files that a container's mounts show.
func filesOf(plan *launch.Plan, c launch.Container) []string {
	out := []string{}
	for _, f := range plan.Files {
		p := f.Request.GetPath()
		if slices.ContainsFunc(c.Create.GetOCI().GetMounts(), func(m *agent.Mount) bool {
			return p == m.GetSource() || strings.HasPrefix(p, strings.TrimSuffix(m.GetSource(), "/")+"/")
		}) {
			out = append(out, p)
		}
	}
	return out
}

// checkImageBinding requires that what the guest pulls is named by digest: the
// source string is all that binds the content of a root file system.
func checkImageBinding(storages []*agent.Storage) error {
	for _, s := range storages {
		if s.GetDriver() == guestPullDriver && !pinnedImage.MatchString(s.GetSource()) {
			return fmt.Errorf("image %q is not pinned by digest (name@sha256:...)", s.GetSource())
		}
	}
	return nil
}

// withPlaceholder replaces the container id in the three places that follow the
// id of a restarted container: root path, cgroup path, mount point of the root.
func withPlaceholder(req map[string]any, id string) {
	swap := func(m map[string]any, key string) {
		if s, ok := m[key].(string); ok {
			m[key] = strings.ReplaceAll(s, id, bundleID)
		}
	}
	oci := req["OCI"].(map[string]any)
	swap(oci["Root"].(map[string]any), "Path")
	swap(oci["Linux"].(map[string]any), "CgroupsPath")
	for _, s := range req["storages"].([]any) {
		swap(s.(map[string]any), "mount_point")
	}
}

func signals(extra []uint32) []uint32 {
	s := append(slices.Clone(baseSignals), extra...)
	slices.Sort(s)
	return slices.Compact(s)
}

func unknownNames(opts Options, known map[string]bool) []string {
	var out []string
	for name := range opts.ExecCommands {
		if !known[name] {
			out = append(out, name)
		}
	}
	for name := range opts.Signals {
		if !known[name] {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
