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

func (r *reader) group(res *node, at string) {
	if c, ok := r.value(res.get("condition"), at+".condition"); ok {
		switch {
		case c == false:
			return
		case c != true:
			r.fault(res.get("condition"), at+".condition", "%s", notA(c, "a boolean"))
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
	if len(r.list(props.get("volumes"), at+".volumes")) > maxContainers {
		r.fault(props.get("volumes"), at+".volumes", "more than %d volumes", maxContainers)
		return
	}
	volumes := r.volumes(props.get("volumes"), at+".volumes")
	for _, field := range []string{"initContainers", "containers"} {
		for i, n := range r.list(props.get(field), at+"."+field) {
			if len(g.Containers) == maxContainers {
				r.fault(n, at+"."+field, "more than %d containers", maxContainers)
				return
			}
			g.Containers = append(g.Containers, r.container(n, volumes, fmt.Sprintf("%s.%s[%d]", at, field, i)))
		}
	}
	if len(g.Containers) == 0 {
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

// volumes gives the kind of each volume by its name.
func (r *reader) volumes(n *node, at string) map[string]string {
	out := map[string]string{}
	for i, v := range r.list(n, at) {
		at := fmt.Sprintf("%s[%d]", at, i)
		v = r.object(v, at)
		name, kind := r.str(v.get("name"), at+".name"), ""
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
	n = r.object(n, at)
	c := Container{Name: r.str(n.get("name"), at+".name")}
	at += ".properties"
	props := r.object(n.get("properties"), at)
	if props == nil {
		r.fault(n, at, "the container has none")
		return c
	}
	if props.get("copy") != nil {
		r.fault(props.get("copy"), at+".copy", "copy loops are not supported")
	}
	if c.Image = r.str(props.get("image"), at+".image"); c.Image == "" {
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
		m := Mount{Path: r.str(v.get("mountPath"), at+".mountPath")}
		name := r.str(v.get("name"), at+".name")
		m.ReadOnly, _ = r.flag(v.get("readOnly"), at+".readOnly")
		var known bool
		if m.Kind, known = volumes[name]; !known {
			r.fault(v, at+".name", "there is no volume %q", name)
		}
		if !path.IsAbs(m.Path) {
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
	v := Variable{Name: r.str(n.get("name"), at+".name")}
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
	value, _ := r.value(field, at+".value")
	switch x := value.(type) {
	case string:
		if v.Value = x; x == thimEndpoint {
			v.Value, v.Pattern = anything, true
		}
	case mixed, open:
		why, _ := isOpen(x)
		if !r.options.AllowOpen {
			r.fault(field, at+".value", "variable %s depends on %s; give a value in a parameters file, or allow any", v.Name, why)
			return v, false
		}
		r.warn("variable %s is bound only in part: it depends on %s", v.Name, why)
		if m, ok := x.(mixed); ok {
			v.Value, v.Pattern = m.pattern(), true
		} else {
			v.Value, v.Pattern = anything, true
		}
	default:
		r.fault(field, at+".value", "%s", notA(value, "a string"))
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
