package aci

import (
	"fmt"
	"strings"
	"testing"
)

// evaluate evaluates an expression among some parameters and variables.
func evaluate(t testing.TB, expr string) (any, error) {
	t.Helper()
	text := `{
		"parameters": {
			"name": {"defaultValue": "Web"}, "n": {"defaultValue": 3}, "missing": {"type": "string"}, "on": {"defaultValue": true},
			"list": {"defaultValue": ["a", "b"]}, "object": {"defaultValue": {"Key": {"inner": [10, 20]}}}, "loop": {"defaultValue": "[parameters('loop')]"}
		},
		"variables": {"copy": "[concat(parameters('name'), '-v')]", "bracket": "[[x]", "a": "[variables('b')]", "b": "[variables('a')]"}
	}`
	root, err := parseJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	s := &scope{params: map[string]*parameter{}, vars: map[string]*node{}, values: map[string]any{}, running: map[string]bool{}}
	for _, m := range root.get("parameters").members {
		s.params[m.name] = &parameter{declared: m.value}
	}
	for _, m := range root.get("variables").members {
		s.vars[m.name] = m.value
	}
	return s.evaluate(expr)
}

func TestExpressions(t *testing.T) {
	for expr, want := range map[string]string{
		`parameters('name')`:                               `"Web"`,
		`PARAMETERS('NAME')`:                               `"Web"`,
		`variables('copy')`:                                `"Web-v"`,
		`variables('bracket')`:                             `"[x]"`,
		`parameters('object').key.inner[1]`:                `20`,
		`parameters('object')['KEY'].inner[0]`:             `10`,
		`parameters('list')[sub(2, 1)]`:                    `"b"`,
		`concat('it''s ', parameters('n'))`:                `"it's 3"`,
		`concat(parameters('list'), createArray('c', 1))`:  `["a","b","c",1]`,
		`format('{0}/{1}:{0} {{x}}', 'a', 2)`:              `"a/2:a {x}"`,
		`if(parameters('on'), 'yes', 'no')`:                `"yes"`,
		`if(not(parameters('on')), 'yes', reference('x'))`: `open`,
		`and(true(), equals(1, 1), less(1, 2))`:            `true`,
		`or(false(), greaterOrEquals('b', 'a'))`:           `true`,
		`equals('a', 'A')`:                                 `false`,
		`toLower('ÄB')`:                                    `"äb"`,
		`substring('äbc', 1, 2)`:                           `"bc"`,
		`substring('abc', 1)`:                              `"bc"`,
		`replace('a.b.c', '.', '-')`:                       `"a-b-c"`,
		`split('a,b', ',')`:                                `["a","b"]`,
		`join(parameters('list'), '+')`:                    `"a+b"`,
		`base64('hi')`:                                     `"aGk="`,
		`base64ToString('aGk=')`:                           `"hi"`,
		`length('äb')`:                                     `2`,
		`empty(createArray())`:                             `true`,
		`first('xyz')`:                                     `"x"`,
		`last(parameters('list'))`:                         `"b"`,
		`contains(parameters('object'), 'KEY')`:            `true`,
		`contains('abc', 'b')`:                             `true`,
		`startsWith('Abc', 'aB')`:                          `true`,
		`coalesce(null(), 'x')`:                            `"x"`,
		`union(createObject('a', createObject('x', 1)), createObject('a', createObject('y', 2)))`: `{"a":{"x":1,"y":2}}`,
		`union(parameters('list'), createArray('b', 'c'))`:                                        `["a","b","c"]`,
		`json('{"a": [1]}').a[0]`:    `1`,
		`int('42')`:                  `42`,
		`mod(7, 4)`:                  `3`,
		`string(parameters('list'))`: `"[\"a\",\"b\"]"`,
		`bool('TRUE')`:               `true`,
		`parameters('missing')`:      `open`,
		`concat('https://', reference('x').fqdn, '/a')`:   `pattern https://(?s:.*)/a`,
		`format('{0}.b', resourceGroup().location)`:       `pattern (?s:.*)\.b`,
		`concat(concat('a', parameters('missing')), 'b')`: `pattern a(?s:.*)b`,
		`toUpper(parameters('missing'))`:                  `open`,
		`parameters('list')[parameters('missing')]`:       `open`,
	} {
		v, err := evaluate(t, expr)
		if err != nil {
			t.Errorf("%s: %v", expr, err)
			continue
		}
		got := ""
		switch v := v.(type) {
		case open:
			got = "open"
		case mixed:
			got = "pattern " + v.pattern()
		default:
			got = jsonText(v)
		}
		if got != want {
			t.Errorf("%s gives %s, want %s", expr, got, want)
		}
	}
}

func TestExpressionFaults(t *testing.T) {
	for expr, fault := range map[string]string{
		``:                             "a value is missing",
		`parameters('x')`:              `no parameter "x"`,
		`variables('x')`:               `no variable "x"`,
		`variables('a')`:               "needs itself",
		`parameters('loop')`:           "needs itself",
		`nosuch(1)`:                    "not supported",
		`contoso.f(1)`:                 "functions of the template's own",
		`concat('a'`:                   "do not end",
		`concat('a`:                    "does not end",
		`'a' 'b'`:                      "left over",
		`parameters('list')[9]`:        "element 9",
		`parameters('list')[-1]`:       "element -1",
		`parameters('list')[0`:         "not closed",
		`parameters('n').x`:            "property",
		`div(1, 0)`:                    "division by zero",
		`format('{5}', 'a')`:           "names none",
		`format('}', 'a')`:             "partner",
		`substring('abc', 2, 5)`:       "not inside",
		`if('x', 1, 2)`:                "no boolean",
		`and(true(), 1)`:               "no boolean",
		`createObject('a')`:            "no value",
		`replace('a', '', 'b')`:        "nothing",
		`99999999999999999999`:         "whole number",
		`int('x')`:                     "invalid syntax",
		`length(1)`:                    "no length",
		`parameters(reference('x').a)`: "a name that is known",
		`json('{')`:                    "ends early",
		strings.Repeat("concat(", 100): "nested",
		`concat('` + strings.Repeat("x", maxExpression) + `')`: "the limit",
	} {
		if v, err := evaluate(t, expr); err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("%.60s: %v, %v, want %q", expr, v, err, fault)
		}
	}
}

// TestDoubling: a text cannot grow without bound.
func TestDoubling(t *testing.T) {
	var vars strings.Builder
	vars.WriteString(`"v0": "` + strings.Repeat("x", 1000) + `"`)
	for i := range 40 {
		fmt.Fprintf(&vars, `, "v%d": "[concat(variables('v%d'), variables('v%d'))]"`, i+1, i, i)
	}
	_, err := ParseTemplate(`{"variables": {`+vars.String()+`}, "resources": [{"type": "[variables('v40')]"}]}`, TemplateOptions{})
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("%.200v", err)
	}
}

func TestJSONFaults(t *testing.T) {
	for _, bad := range []string{
		``, `{`, `[1,]`, `{"a":1,}`, `{"a" 1}`, `{a: 1}`, `{"a": 1, "A": 2}`, `[1 2]`, `"a`, "\"a\nb\"", `tru`, `01`, `-`, `1.`, `/* x`, `{} x`, `{"a": "\x"}`, `[}`, "\xff",
		strings.Repeat("[", 100), strings.Repeat(" ", maxTemplateBytes+1),
	} {
		if n, err := parseJSON(bad); err == nil {
			t.Errorf("%.40q is read as %c", bad, n.kind)
		}
	}
	n, err := parseJSON("\ufeff// c\n{ /* x */ \"a\": [ 1, -2.5e3, true, null, \"\\u00e4\" ] } // end")
	if err != nil || jsonText(mustLiteral(t, n)) != `{"a":[1,-2500,true,null,"ä"]}` {
		t.Errorf("%v", err)
	}
}

func mustLiteral(t *testing.T, n *node) any {
	t.Helper()
	v, err := n.literal()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func FuzzTemplate(f *testing.F) {
	f.Add(`{"parameters": {"a": {"defaultValue": "x"}}, "variables": {"v": "[concat('a', parameters('a'))]"}, "resources": [{"type": "Microsoft.ContainerInstance/containerGroups", "name": "[variables('v')]", "properties": {"confidentialComputeProperties": {}, "containers": [{"name": "c", "properties": {"image": "i", "environmentVariables": [{"name": "N", "value": "[reference('x')]"}]}}]}}]}`)
	f.Add(`{"resources": {"a": {"type": "Microsoft.ContainerInstance/containerGroups", "properties": {"containers": "[createArray(json('{}'))]"}}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		tmpl, err := ParseTemplate(text, TemplateOptions{AllowOpen: true})
		if err != nil {
			return
		}
		for _, g := range tmpl.Groups {
			if err := tmpl.Insert(g, "AAAA"); err != nil {
				t.Fatal(err)
			}
		}
		again, err := ParseTemplate(tmpl.Text(), TemplateOptions{AllowOpen: true})
		if err != nil {
			t.Fatalf("with the policy in it the template is damaged: %v\n%s", err, tmpl.Text())
		}
		if len(again.Groups) != len(tmpl.Groups) {
			t.Error("a container group is lost")
		}
	})
}
