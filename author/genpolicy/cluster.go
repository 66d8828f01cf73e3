package genpolicy

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/cloister/cloister/author/kubernetes"
)

// clusterVariable is a kind of variables that Kubernetes adds to containers, as request_defaults.CreateContainerRequest.allow_env_regex
// has them. A manifest can name such a variable as $(NAME).
type clusterVariable struct {
	name    *regexp.Regexp // of the whole name
	value   string         // regular expression of the whole value
	service bool           // the kubelet adds it for a service; others come from controllers and webhooks
	open    bool           // the value can be any text
}

// clusterVariables takes the expressions of the settings apart. Those that are not a name, "=" and a value belong to no variable that could
// be named.
func (s *Settings) clusterVariables() ([]clusterVariable, error) {
	create, _ := s.Requests["CreateContainerRequest"].(map[string]any)
	list, _ := create["allow_env_regex"].([]any)
	var fill []string
	for _, key := range []string{"ipv4_a", "ip_p", "dns_label", "svc_name_downward_env", "svc_name"} {
		if text, ok := s.Common[key].(string); ok {
			fill = append(fill, "$("+key+")", text)
		}
	}
	filled := strings.NewReplacer(fill...)
	var out []clusterVariable
	for _, x := range list {
		text, ok := x.(string)
		if !ok {
			return nil, fmt.Errorf("request_defaults.CreateContainerRequest.allow_env_regex has %v, want regular expressions", x)
		}
		name, value, ok := strings.Cut(text, "=")
		if !ok || !strings.HasPrefix(name, "^") || !strings.HasSuffix(value, "$") {
			continue
		}
		v := clusterVariable{value: filled.Replace(strings.TrimSuffix(value, "$")), service: strings.Contains(name, "$(svc_name")}
		re, err := syntax.Parse(v.value, syntax.Perl)
		if err != nil || anchored(re) {
			continue
		}
		v.open = anyText(re)
		if v.name, err = regexp.Compile("^(?:" + filled.Replace(name[1:]) + ")$"); err != nil {
			continue
		}
		out = append(out, v)
	}
	return out, nil
}

// anchored says whether an expression looks at what is around it.
func anchored(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return true
	}
	for _, sub := range re.Sub {
		if anchored(sub) {
			return true
		}
	}
	return false
}

// wideClass is how many characters a class of them has that stands for "anything", such as [^,].
const wideClass = 1 << 12

// anyText says whether what fits an expression can have a part of any characters.
func anyText(re *syntax.Regexp) bool {
	switch re.Op {
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return true
	case syntax.OpCharClass:
		n := 0
		for i := 0; i+1 < len(re.Rune); i += 2 {
			n += int(re.Rune[i+1]-re.Rune[i]) + 1
		}
		return n > wideClass
	}
	for _, sub := range re.Sub {
		if anyText(sub) {
			return true
		}
	}
	return false
}

// Of the service that every cluster has, and every container gets.
var apiServer = regexp.MustCompile(`^KUBERNETES_(SERVICE_HOST|SERVICE_PORT(_HTTPS)?|PORT)$`)

// lookup finds variables of one container: the manifest's, and those of the cluster as placeholders. What they stand for is gathered in found.
type lookup struct {
	g      *generator
	at     kubernetes.At
	path   string
	values map[string]string // the manifest's
	// inEnv: in the value of a variable the kubelet knows those of services, but not yet those that are added to the manifest's.
	inEnv bool
	found map[string]string // name of a variable of the cluster to the regular expression of what is put in its place
}

// value is what stands for $(name). A variable of the cluster becomes $(cluster:name).
func (l *lookup) value(name string) (string, bool) {
	if v, ok := l.values[name]; ok {
		return v, true
	}
	pattern, ok := l.g.clusterPattern(l.at, l.path, name, l.inEnv)
	if !ok {
		return "", false
	}
	l.found[name] = pattern
	return "$(cluster:" + name + ")", true
}

// clusterPattern is what the kubelet can make of $(name).
func (g *generator) clusterPattern(at kubernetes.At, path, name string, inEnv bool) (string, bool) {
	switch name {
	case "HOSTNAME", "TERM": // containerd adds them, which the kubelet does not know
		return "", false
	case "JOB_COMPLETION_INDEX":
		if g.w.Kind != "Job" && g.w.Kind != "CronJob" {
			return "", false
		}
	}
	links := g.w.Spec.EnableServiceLinks == nil || *g.w.Spec.EnableServiceLinks
	var values []string
	for _, v := range g.cluster {
		switch {
		case !v.name.MatchString(name), inEnv && !v.service, v.service && !links && !strings.HasPrefix(name, "KUBERNETES_"):
			continue
		case v.open:
			g.fail(at, path, "$(%s) is added by the cluster and can be any text, by allow_env_regex of the settings; set it in the manifest", name)
			return "", false
		}
		values = append(values, v.value)
	}
	if len(values) == 0 {
		return "", false
	}
	if !apiServer.MatchString(name) { // without such a service the words stay as they are
		values = append(values, regexp.QuoteMeta("$("+name+")"))
	}
	return "(?:" + strings.Join(values, "|") + ")", true
}
