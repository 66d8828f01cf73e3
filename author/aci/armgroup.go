package aci

import (
	"encoding/base64"
	"fmt"
	"path"
	"slices"
	"strings"
)

// The kinds of volumes that the service mounts, and where their sources are in the guest.
var volumeSources = map[string]string{
	"azureFile": "sandbox:///tmp/atlas/azureFileVolume/.+",
	"emptyDir":  "sandbox:///tmp/atlas/emptydir/.+",
	"secret":    "sandbox:///tmp/atlas/secretsVolume/.+",
	"gitRepo":   "sandbox:///tmp/atlas/gitRepoVolume/.+",
}

// thimEndpoint is a value that the service replaces by the address from which containers get certificates of the processor.
const thimEndpoint = "===CONFIDENTIAL.THIM.ENDPOINT==="

// unreadable is no name of a volume.
const unreadable = "\x00"

func (r *reader) group(res *node, at string) {
	if c, ok := r.value(res.get("condition"), at+".condition"); ok {
		switch {
		case c == false:
			return
		case c != true:
			r.fault(res.get("condition"), at+".condition", "%w", notA(c, "a boolean"))
			return
		}
	}
	if res.get("copy") != nil {
		r.fault(res.get("copy"), at+".copy", "copy loops are not supported: each group needs its own policy")
		return
	}
	g := &Group{}
	if v, ok := r.value(res.get("name"), at+".name"); ok {
		g.Name = toText(v)
		if why, yes := isOpen(v); yes {
			g.Name = "(depends on " + why + ")"
		}
	}
	props := res.get("properties")
	if props == nil || props.kind != '{' {
		r.fault(res, at+".properties", "the container group has none that is written out")
		return
	}
	at += ".properties"
	if os := r.str(props.get("osType"), at+".osType"); os != "" && !strings.EqualFold(os, "Linux") {
		r.fault(props.get("osType"), at+".osType", "%q is not supported, want Linux", os)
	}
	if sku := props.get("sku"); sku != nil {
		if s := r.str(sku, at+".sku"); !strings.EqualFold(s, "Confidential") {
			r.warn("container group %s has the sku %s: Azure uses its policy only with the sku Confidential", g.Name, s)
		}
	} else {
		r.warn("container group %s has no sku: Azure uses its policy only with the sku Confidential", g.Name)
	}
	if props.get("copy") != nil {
		r.fault(props.get("copy"), at+".copy", "copy loops are not supported")
	}
	volumes := r.volumes(props.get("volumes"), at+".volumes")
	if volumes == nil {
		return
	}
	before := len(r.faults)
	for _, field := range []string{"initContainers", "containers"} {
		for i, n := range r.list(props.get(field), at+"."+field) {
			if len(g.Containers) == maxContainers {
				r.fault(n, at+"."+field, "more than %d containers", maxContainers)
				return
			}
			g.Containers = append(g.Containers, r.container(n, volumes, fmt.Sprintf("%s.%s[%d]", at, field, i)))
		}
	}
	if len(g.Containers) == 0 && len(r.faults) == before { // a list that cannot be read may have some
		r.fault(props, at+".containers", "the container group has no containers")
	}
	if len(r.template.Groups) == maxGroups {
		r.fault(res, at, "more than %d container groups", maxGroups)
		return
	}
	g.ccePolicy = placeOf(props)
	if old := props.get("confidentialComputeProperties").get("ccePolicy"); old != nil {
		if _, ok := isExpression(old.text); ok && old.kind == '"' {
			r.warn("the expression %s as ccePolicy of container group %s is replaced by the policy itself", old.text, g.Name)
		}
	}
	r.template.Groups = append(r.template.Groups, g)
}

func (r *reader) warn(format string, args ...any) {
	r.template.Warnings = append(r.template.Warnings, fmt.Sprintf(format, args...))
}

// volumes gives the kind of each volume by its name. Where one has no name that can be read, unreadable is there: any name may mean it. It is
// nil if there are too many.
func (r *reader) volumes(n *node, at string) map[string]string {
	out := map[string]string{}
	before := len(r.faults)
	list := r.list(n, at)
	if len(list) > maxContainers {
		r.fault(n, at, "more than %d volumes", maxContainers)
		return nil
	}
	if len(r.faults) > before {
		out[unreadable] = unreadable
	}
	for i, v := range list {
		at := fmt.Sprintf("%s[%d]", at, i)
		name, read := "", false
		if v = r.object(v, at); v != nil {
			name, read = r.text(v.get("name"), at+".name")
		}
		if !read {
			out[unreadable] = unreadable
			continue
		}
		kind := ""
		for k := range volumeSources {
			if x := v.get(k); x != nil && x.kind != 'n' {
				if kind != "" {
					r.fault(v, at, "it has two kinds, %s and %s", min(kind, k), max(kind, k))
				}
				kind = k
			}
		}
		switch {
		case name == "":
			r.fault(v, at+".name", "a volume has no name")
		case kind == "":
			r.fault(v, at, "volume %q is of no kind that is supported; want azureFile, emptyDir, secret or gitRepo", name)
		case out[name] != "":
			r.fault(v, at+".name", "there are two volumes %q", name)
		}
		out[name] = kind
	}
	return out
}

func (r *reader) container(n *node, volumes map[string]string, at string) Container {
	if n = r.object(n, at); n == nil {
		return Container{}
	}
	c := Container{Name: r.str(n.get("name"), at+".name")}
	at += ".properties"
	props := r.object(n.get("properties"), at)
	if props == nil {
		if n.get("properties") == nil {
			r.fault(n, at, "the container has none")
		}
		return c
	}
	if props.get("copy") != nil {
		r.fault(props.get("copy"), at+".copy", "copy loops are not supported")
	}
	image, read := r.text(props.get("image"), at+".image")
	if c.Image = image; read && image == "" {
		r.fault(n, at+".image", "the container names no image")
	}
	c.Entrypoint = r.strings(props.get("command"), at+".command")
	for i, v := range r.list(props.get("environmentVariables"), at+".environmentVariables") {
		if v, ok := r.variable(v, fmt.Sprintf("%s.environmentVariables[%d]", at, i)); ok {
			if slices.ContainsFunc(c.Env, func(o Variable) bool { return o.Name == v.Name }) {
				r.fault(props.get("environmentVariables"), at+".environmentVariables", "there are two variables %q", v.Name)
			}
			c.Env = append(c.Env, v)
		}
	}
	for i, v := range r.list(props.get("volumeMounts"), at+".volumeMounts") {
		at := fmt.Sprintf("%s.volumeMounts[%d]", at, i)
		v = r.object(v, at)
		place, readPlace := r.text(v.get("mountPath"), at+".mountPath")
		name, readName := r.text(v.get("name"), at+".name")
		m := Mount{Path: place}
		m.ReadOnly, _ = r.flag(v.get("readOnly"), at+".readOnly")
		var known bool
		if m.Kind, known = volumes[name]; !known && readName && volumes[unreadable] == "" {
			r.fault(v, at+".name", "there is no volume %q", name)
		}
		if readPlace && !path.IsAbs(m.Path) {
			r.fault(v, at+".mountPath", "%q is no absolute path", m.Path)
		}
		c.Mounts = append(c.Mounts, m)
	}
	if maps := props.get("configMap").get("keyValuePairs"); maps != nil && maps.kind != 'n' {
		r.fault(maps, at+".configMap", "configuration maps are not supported")
	}
	for _, probe := range []string{"livenessProbe", "readinessProbe"} {
		exec := r.object(r.object(props.get(probe), at+"."+probe).get("exec"), at+"."+probe+".exec")
		if exec == nil || exec.kind != '{' {
			continue
		}
		if command := r.strings(exec.get("command"), at+"."+probe+".exec.command"); len(command) > 0 {
			c.Exec = append(c.Exec, command)
		} else {
			r.fault(exec, at+"."+probe+".exec", "the probe has no command")
		}
	}
	r.security(&c.Security, r.object(props.get("securityContext"), at+".securityContext"), at+".securityContext")
	return c
}

func (r *reader) variable(n *node, at string) (Variable, bool) {
	n = r.object(n, at)
	name, read := r.text(n.get("name"), at+".name")
	v := Variable{Name: name}
	if !read {
		return v, false
	}
	if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") {
		r.fault(n, at+".name", "%q is no name of a variable", v.Name)
		return v, false
	}
	field, secure := n.get("value"), false
	if s := n.get("secureValue"); s != nil && s.kind != 'n' {
		if field != nil && field.kind != 'n' {
			r.fault(n, at, "variable %s has both value and secureValue", v.Name)
		}
		field, secure = s, true
	}
	if field == nil {
		r.fault(n, at, "variable %s has no value", v.Name)
		return v, false
	}
	if secure && !r.options.PinSecure {
		r.warn("the secure variable %s can have any value: the policy does not bind it", v.Name)
		v.Value, v.Pattern = anything, true
		return v, true
	}
	before := len(r.faults)
	value, _ := r.value(field, at+".value")
	if len(r.faults) > before {
		return v, false
	}
	switch x := value.(type) {
	case string:
		if v.Value = x; x == thimEndpoint {
			v.Value, v.Pattern = anything, true
		}
	case mixed, open:
		o, _ := openPart(x)
		if !r.options.AllowOpen {
			err := o.fault("variable %s depends on %s; give a value in a parameters file, or allow any", v.Name, o.why)
			err.Variable = true
			r.fault(field, at+".value", "%w", err)
			return v, false
		}
		r.warn("variable %s is bound only in part: it depends on %s", v.Name, o.why)
		if m, ok := x.(mixed); ok {
			v.Value, v.Pattern = m.pattern(), true
		} else {
			v.Value, v.Pattern = anything, true
		}
	default:
		r.fault(field, at+".value", "%w", notA(value, "a string"))
		return v, false
	}
	return v, true
}

func (r *reader) security(s *Security, n *node, at string) {
	if n == nil {
		return
	}
	s.Privileged, _ = r.flag(n.get("privileged"), at+".privileged")
	if may, set := r.flag(n.get("allowPrivilegeEscalation"), at+".allowPrivilegeEscalation"); set {
		s.NoNewPrivileges = !may
	}
	s.User = r.number(n.get("runAsUser"), at+".runAsUser")
	s.Group = r.number(n.get("runAsGroup"), at+".runAsGroup")
	if caps := r.object(n.get("capabilities"), at+".capabilities"); caps != nil {
		s.CapAdd = r.strings(caps.get("add"), at+".capabilities.add")
		s.CapDrop = r.strings(caps.get("drop"), at+".capabilities.drop")
	}
	if profile := r.str(n.get("seccompProfile"), at+".seccompProfile"); profile != "" {
		raw, err := base64.StdEncoding.DecodeString(profile)
		if err == nil {
			s.SeccompSHA256, err = SeccompDigest(raw)
		}
		if err != nil {
			r.fault(n.get("seccompProfile"), at+".seccompProfile", "%w", err)
		}
	}
}
