package kubernetes

import (
	"strings"
	"testing"
)

func TestUnknownFieldsAreGuessed(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n    image: b\n    %\n"
	for field, want := range map[string]string{
		"imagePullPolcy: Always":         `containers[0].imagePullPolcy: unknown field, did you mean "imagePullPolicy"?`,
		"emv: []":                        "containers[0].emv: unknown field\n",
		"Command: [x]":                   `unknown field, did you mean "command"?`,
		"something: 1":                   "containers[0].something: unknown field\n",
		"volumeMount: []":                `unknown field, did you mean "volumeMounts"?`,
		strings.Repeat("x", 200) + ": 1": "xx: unknown field\n",
	} {
		_, err := Parse([]Input{{Name: "x", Data: []byte(strings.ReplaceAll(pod, "%", field))}}, nil, Options{})
		if err == nil || !strings.Contains(err.Error()+"\n", want) {
			t.Errorf("%.40s: got %.300v, want %q", field, err, want)
		}
	}
}
