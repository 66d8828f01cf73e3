// Package policyview shows a policy to people: what may run and what the host may do, on one page, and what differs
// between two policies. It reads policy_data and the defaults of the rules; it judges no request (author/policytest does).
package policyview

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// MaxSize bounds the text of a policy, in bytes: what the guest takes.
const MaxSize = 16 << 20

// Policy is a policy taken apart.
type Policy struct {
	// Rules is the SHA-256 of the text before policy_data, in hex.
	Rules string
	// Always and Never are the requests whose decision does not depend on the request.
	Always, Never []string
	// Data is policy_data; nil when the policy has none. Of a policy of Azure Container Instances: what it declares.
	Data map[string]any

	data data
	aci  *aciData
}

// data is what this package reads of policy_data, of either generator.
type data struct {
	Containers []containerData                     `json:"containers"`
	Common     map[string]any                      `json:"common"`
	Defaults   map[string]any                      `json:"request_defaults"`
	Cloister   map[string]any                      `json:"cloister"`
	Files      map[string]struct{ FileSize int64 } `json:"files"`
	Fragments  []fragmentData                      `json:"fragments"`
}

// fragmentData declares signed data that the host may bring later.
type fragmentData struct {
	Issuer     string `json:"issuer"`
	Feed       string `json:"feed"`
	MinimumSVN any    `json:"minimum_svn"`
	Required   bool   `json:"required"`
}

type containerData struct {
	Name          *string       `json:"name"`
	Kind          string        `json:"kind"`
	Init          bool          `json:"init"` // of policies for `cloister run`
	OCI           ociData       `json:"OCI"`
	Storages      []storageData `json:"storages"`
	Exec          [][]string    `json:"exec_commands"`
	Signals       []int         `json:"signals"`
	Restarts      *bool         `json:"restarts"`
	MustRun       bool          `json:"must_run"`
	Image         *imageData    `json:"image"`
	Files         files         `json:"files"`
	Devices       []any         `json:"devices"`
	SharedPID     bool          `json:"sandbox_pidns"`
	StandardInput bool          `json:"stdin"`
	// Names and destinations that the host may not leave out; nil in data of other generators.
	RequiredEnv    *[]string `json:"required_env"`
	RequiredMounts *[]string `json:"required_mounts"`
	// ClusterValues are expressions of what $(cluster:NAME) can be, by name.
	ClusterValues map[string]string `json:"cluster_values"`
}

type ociData struct {
	Process struct {
		Args, Env       []string
		Cwd             string
		Terminal        bool
		NoNewPrivileges bool
		User            struct {
			UID, GID       int64
			AdditionalGids []int64
		}
		Capabilities map[string][]string
	}
	Root        struct{ Readonly bool }
	Mounts      []mountData
	Annotations map[string]string
}

type mountData struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type_"`
	Source      string   `json:"source"`
	Options     []string `json:"options"`
	Volume      string   `json:"volume"` // of a mount that is on a disk
}

type storageData struct {
	Driver        string   `json:"driver"`
	Source        string   `json:"source"`
	FSType        string   `json:"fstype"`
	MountPoint    string   `json:"mount_point"`
	Options       []string `json:"options"`
	DriverOptions []string `json:"driver_options"`
	Volume        string   `json:"volume"`
}

type imageData struct {
	Reference string   `json:"reference"`
	Digest    string   `json:"digest"`
	Digests   []string `json:"digests"`
	ByTag     bool     `json:"by_tag"`
}

type fileData struct {
	Destination string         `json:"destination"`
	Volume      string         `json:"volume"`
	Kind        string         `json:"kind"`
	Bound       bool           `json:"bound"`
	Entries     map[string]any `json:"entries"`
	Free        *struct {
		Any   bool     `json:"any"`
		Paths []string `json:"paths"`
	} `json:"free"`
}

// Parse takes the text of a policy apart. Both dialects of Rego are read, as the guest does. Policies of Azure Container Instances
// (ccePolicy, in clear text) are read, too.
func Parse(text string) (*Policy, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("the policy has %d bytes, the limit is %d", len(text), MaxSize)
	}
	module, err := parse(text)
	if err != nil {
		return nil, err
	}
	switch got := module.Package.Path.String(); got {
	case "data.agent_policy":
	case "data.policy":
		return parseACI(module)
	default:
		return nil, fmt.Errorf("the package is %s, expected agent_policy, or policy as in Azure Container Instances", strings.TrimPrefix(got, "data."))
	}
	rules := text
	if i := strings.LastIndex(text, "\npolicy_data :="); i >= 0 {
		rules = text[:i+1]
	}
	sum := sha256.Sum256([]byte(rules))
	p := &Policy{Rules: hex.EncodeToString(sum[:])}
	decided := map[string]bool{}
	for _, r := range module.Rules {
		name := string(r.Head.Name)
		switch {
		case r.Default:
			switch v := r.Head.Value.Value.(type) {
			case ast.Boolean:
				if bool(v) {
					p.Always = append(p.Always, name)
				} else {
					p.Never = append(p.Never, name)
				}
			}
		case name == "policy_data":
			if err := p.read(r.Head.Value); err != nil {
				return nil, err
			}
		default:
			decided[name] = true
		}
	}
	p.Never = slices.DeleteFunc(p.Never, func(name string) bool { return decided[name] })
	slices.Sort(p.Always)
	slices.Sort(p.Never)
	return p, nil
}

func parse(text string) (*ast.Module, error) {
	var faults []error
	for _, v := range []ast.RegoVersion{ast.RegoV0, ast.RegoV1} {
		m, err := ast.ParseModuleWithOpts("policy", text, ast.ParserOptions{RegoVersion: v})
		switch {
		case err != nil:
			faults = append(faults, err)
		case m == nil:
			return nil, errors.New("the policy is empty")
		default:
			return m, nil
		}
	}
	return nil, fmt.Errorf("parsing the policy: %w", withoutText(faults[len(faults)-1]))
}

// withoutText are the faults of a parser, the first few, without the lines of the text that they are about: a line may have megabytes.
func withoutText(err error) error {
	var faults ast.Errors
	if !errors.As(err, &faults) {
		return err
	}
	const most = 5
	var out []string
	for _, f := range faults[:min(len(faults), most)] {
		where := ""
		if f.Location != nil {
			where = fmt.Sprintf("line %d: ", f.Location.Row)
		}
		out = append(out, where+fmt.Sprintf("%.300s", f.Message))
	}
	if more := len(faults) - most; more > 0 {
		out = append(out, fmt.Sprintf("and %d more", more))
	}
	return errors.New(strings.Join(out, "; "))
}

func (p *Policy) read(value *ast.Term) error {
	v, err := ast.JSON(value.Value)
	if err != nil {
		return fmt.Errorf("reading policy_data: %w", err)
	}
	p.Data, _ = v.(map[string]any)
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("reading policy_data: %w", err)
	}
	if err := json.Unmarshal(raw, &p.data); err != nil {
		return fmt.Errorf("reading policy_data: %w", err)
	}
	return nil
}

// files are those of volumes whose content is bound. Policies for `cloister run` name files of the pod there instead.
type files []fileData

// UnmarshalJSON is part of json.Unmarshaler.
func (f *files) UnmarshalJSON(raw []byte) error {
	var names []string
	if json.Unmarshal(raw, &names) == nil {
		return nil
	}
	return json.Unmarshal(raw, (*[]fileData)(f))
}

// title is the name of a container for people.
func (c *containerData) title() string {
	switch name := c.OCI.Annotations["io.kubernetes.cri.container-name"]; {
	case c.Name != nil && *c.Name != "":
		return *c.Name
	case name != "":
		return name
	}
	return "(pause)"
}
