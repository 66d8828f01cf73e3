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

// aciData is what this package reads of a policy of Azure Container Instances. Its members are those of Microsoft's framework
// (hcsshim, pkg/securitypolicy).
type aciData struct {
	Containers []aciContainer  `json:"containers"`
	Fragments  []aciFragment   `json:"fragments"`
	allow      map[string]bool // what the host may ask of the guest
}

type aciContainer struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	Command    []string     `json:"command"`
	Env        []aciPattern `json:"env_rules"`
	Layers     []string     `json:"layers"`
	Mounts     []aciMount   `json:"mounts"`
	Exec       []aciExec    `json:"exec_processes"`
	Signals    []int        `json:"signals"`
	WorkingDir string       `json:"working_dir"`
	Elevated   bool         `json:"allow_elevated"`
	Stdio      bool         `json:"allow_stdio_access"`
	NoNew      bool         `json:"no_new_privileges"`
	User       struct {
		User aciPattern `json:"user_idname"`
	} `json:"user"`
}

type aciPattern struct {
	Pattern  string `json:"pattern"`
	Strategy string `json:"strategy"`
	Required bool   `json:"required"`
}

type aciMount struct {
	Destination string   `json:"destination"`
	Source      string   `json:"source"`
	Options     []string `json:"options"`
}

type aciExec struct {
	Command []string `json:"command"`
}

type aciFragment struct {
	Issuer     string   `json:"issuer"`
	Feed       string   `json:"feed"`
	MinimumSVN any      `json:"minimum_svn"`
	Includes   []string `json:"includes"`
}

// parseACI reads the values that such a policy declares. Its other rules only lead to the framework.
func parseACI(module *ast.Module) (*Policy, error) {
	p := &Policy{Data: map[string]any{}, aci: &aciData{allow: map[string]bool{}}}
	sum := sha256.New()
	for _, r := range module.Rules {
		name := string(r.Head.Name)
		v, err := constant(r)
		if err != nil {
			fmt.Fprintln(sum, r.String())
			continue
		}
		p.Data[name] = v
		if on, ok := v.(bool); ok {
			p.aci.allow[name] = on
		}
	}
	p.Rules = hex.EncodeToString(sum.Sum(nil))
	raw, err := json.Marshal(p.Data)
	if err == nil {
		err = json.Unmarshal(raw, p.aci)
	}
	if err != nil {
		return nil, fmt.Errorf("reading a policy of Azure Container Instances: %w", err)
	}
	return p, nil
}

var errNotConstant = errors.New("not a constant")

// constant is the value of a rule `name := value`, which the parser gives the body "true".
func constant(r *ast.Rule) (any, error) {
	if r.Default || len(r.Head.Args) > 0 || r.Head.Key != nil || r.Head.Value == nil || !(len(r.Body) == 1 && r.Body[0].String() == "true") {
		return nil, errNotConstant
	}
	switch v := r.Head.Value.Value.(type) {
	case *ast.Array, ast.Object, ast.Boolean, ast.String, ast.Number:
		if !r.Head.Value.IsGround() {
			return nil, errNotConstant
		}
		return ast.JSON(v)
	}
	return nil, errNotConstant
}

func (p *Policy) aciPage(pg *pager, o PageOptions) {
	d := p.aci
	pg.line("A container group of Azure Container Instances: %d containers", len(d.Containers))
	for _, f := range d.Fragments {
		pg.row("fragment", fmt.Sprintf("%s from %s signed by %s, version %s or later", safe(strings.Join(f.Includes, " and ")), safe(f.Feed), safe(f.Issuer), safe(fmt.Sprint(f.MinimumSVN))))
	}
	for i := range d.Containers {
		d.Containers[i].page(pg, o)
	}
	pg.line("")
	pg.line("The host")
	for _, name := range sorted(d.allow) {
		if what, ok := strings.CutPrefix(name, "allow_"); ok {
			pg.row(map[bool]string{true: "can", false: "cannot"}[d.allow[name]], safe(strings.ReplaceAll(what, "_", " ")))
		}
	}
	if notes := p.Warnings(); len(notes) > 0 {
		pg.line("")
		pg.line("Mind")
		for _, n := range notes {
			pg.line("  - %s", n)
		}
	}
}

func (c *aciContainer) page(pg *pager, o PageOptions) {
	pg.line("")
	pg.line("%s", safe(c.title()))
	if c.ID != "" && c.ID != c.Name {
		pg.row("image", safe(c.ID)+" (a note: the layers bind it)")
	}
	for _, l := range c.Layers {
		pg.row("layer", safe(l))
	}
	pg.row("runs", command(c.Command)+" in "+safe(c.WorkingDir))
	user := c.User.User.Strategy + " " + c.User.User.Pattern
	if c.NoNew {
		user += ", no new privileges"
	}
	pg.row("user", safe(strings.TrimSpace(user)))
	var names []string
	for _, e := range c.Env {
		name, _, _ := strings.Cut(e.Pattern, "=")
		if o.Values {
			name = e.Pattern
		}
		if e.Strategy != "string" {
			name += " (a pattern)"
		}
		names = append(names, safe(name))
	}
	pg.row("variables", wrapped(names)...)
	for _, m := range c.Mounts {
		how := "read-write"
		if slices.Contains(m.Options, "ro") {
			how = "read-only"
		}
		pg.row("mount", fmt.Sprintf("%s %s, from %s", safe(m.Destination), how, safe(m.Source)))
	}
	for _, e := range c.Exec {
		pg.row("exec", command(e.Command))
	}
	pg.row("signals", numbers(c.Signals))
	pg.row("output", map[bool]string{true: "goes to the host", false: "stays in the guest"}[c.Stdio])
}

func (c *aciContainer) title() string {
	switch {
	case c.Name != "":
		return c.Name
	case c.ID != "":
		return c.ID
	}
	return "(no name)"
}

// warnings are what an owner should know before trusting the policy.
func (d *aciData) warnings(declared map[string]any) []string {
	var out []string
	for _, name := range sorted(declared) {
		if m, _ := declared[name].(map[string]any); m["allowed"] == true {
			out = append(out, "insecure: "+safe(name)+" is allowed whatever is asked")
		}
	}
	for i := range d.Containers {
		c := &d.Containers[i]
		if c.Elevated {
			out = append(out, safe(c.title())+": it is privileged")
		}
		if len(c.Layers) == 0 {
			out = append(out, safe(c.title())+": no layer binds its image")
		}
	}
	for _, name := range []string{"allow_dump_stacks", "allow_runtime_logging", "allow_unencrypted_scratch"} {
		if d.allow[name] {
			out = append(out, "insecure: "+name)
		}
	}
	return out
}
